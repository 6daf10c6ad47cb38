"""What every room may use: files, devices, progress, pictures."""
