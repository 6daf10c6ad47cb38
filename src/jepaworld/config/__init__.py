"""The tree of settings: types, defaults, ranges, rules; loading it strictly and writing it with comments."""

from jepaworld.config.loading import Config, config_from_dict, load_config, to_commented_yaml

__all__ = ["Config", "config_from_dict", "load_config", "to_commented_yaml"]
