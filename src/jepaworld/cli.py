"""The commands. Each is thin: it loads what it needs when it runs, so that `--help` answers at once."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jepaworld.errors import JepaworldError

if TYPE_CHECKING:
    from jepaworld.config import Config
    from jepaworld.utils.console import RichProgress

app = typer.Typer(
    name="jepaworld",
    help="Action-conditioned JEPA world models from pixels: collect, train, look, plan, judge.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    rich_markup_mode="rich",
)

ConfigArgument = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file, or a recipe's name.")]
OverridesArgument = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings to override, e.g. batch_size=128.")
]
RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="Run folder that `train` wrote.")]


def main() -> None:
    """Run a command; a problem that the user can mend ends in its message and exit code 2, Ctrl-C in 130."""
    # An installed command does not find modules in the folder it is started in, as `python -m` does: environments
    # and policies of one's own. Last, so that a user's random.py does not hide the standard library's.
    sys.path.append(str(Path.cwd()))
    try:
        app(prog_name="jepaworld")
    except JepaworldError as error:
        _say(f"error: {error}")
        sys.exit(2)


def _say(text: str) -> None:
    typer.echo(text, err=True)


def _progress() -> RichProgress:
    from rich.console import Console

    from jepaworld.utils.console import RichProgress

    return RichProgress(Console(stderr=True))


def _load(path: Path, overrides: list[str] | None) -> Config:
    """The user's own configuration: what it names may be imported."""
    from jepaworld.config import load_config
    from jepaworld.errors import ConfigError

    if "=" in path.name and not path.exists():
        raise ConfigError(f"{path}: stands where CONFIG is expected. Name a YAML file or a recipe, then KEY=VALUE.")
    return load_config(path, overrides or [], trust=True)


def _load_of(run: Path, overrides: list[str] | None) -> Config:
    """The configuration of a run, which may be somebody else's: nothing that it names is imported without leave."""
    from jepaworld.config import load_config
    from jepaworld.runs.folder import RunFolder

    return load_config(RunFolder.open(run).config_file, overrides or [])


@contextmanager
def _interruptible(command: str) -> Iterator[None]:
    """Say how to go on after Ctrl-C."""
    try:
        yield
    except KeyboardInterrupt:
        _say(f"interrupted; go on with: {command}")
        raise


@app.command(epilog="Example: jepaworld init my_project")
def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where config.yaml goes.")] = Path(),
) -> None:
    """Write a config.yaml with every setting, commented."""
    from jepaworld.config import to_commented_yaml
    from jepaworld.errors import ConfigError
    from jepaworld.utils.storage import atomic_write_text, storage_errors

    path = folder / "config.yaml"
    if path.exists():
        raise ConfigError(f"{path}: exists already. Move it away or choose another folder.")
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
    atomic_write_text(path, to_commented_yaml())
    _say(f"{path} written. Next: jepaworld check {path}, then jepaworld train {path}")


@app.command(epilog="Example: jepaworld recipes")
def recipes() -> None:
    """List the packaged configurations: what each is for, what it needs, how well it plans."""
    from jepaworld.config import load_config
    from jepaworld.config.catalogue import catalogue, overview

    environments = {name: load_config(name).environment_name for name in catalogue()}
    typer.echo("\n".join(overview(environments)))
    _say("Next: jepaworld train RECIPE; jepaworld check RECIPE shows its settings")


@app.command(epilog="Example: jepaworld check config.yaml encoder_type=vit")
def check(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Validate a configuration; print it resolved, with parameter counts and a memory estimate."""
    from jepaworld.config import to_commented_yaml
    from jepaworld.training_costs import describe_config

    resolved = _load(config, overrides)
    description = describe_config(resolved)  # first, as it refuses what cannot be trained
    typer.echo(to_commented_yaml(resolved))
    _say(description)


@app.command("check-env", epilog="Example: jepaworld check-env ALE/Pong-v5 environment_kwargs.frameskip=2")
def check_env(
    environment: Annotated[
        str, typer.Argument(metavar="ENV_ID|CONFIG", help="Gymnasium id, module:id, a YAML file or a recipe's name.")
    ],
    overrides: OverridesArgument = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=1024, help="As image_size=..., side of the frames in pixels.")
    ] = None,
    grey: Annotated[bool, typer.Option("--grey", help="As input_channels=1, look at greyscale frames.")] = False,
) -> None:
    """Say whether an environment can be used, and what is missing."""
    from jepaworld.config.catalogue import catalogue
    from jepaworld.envs.conformance import check_env as examine

    settings = [*(overrides or [])]
    settings += [f"image_size={image_size}"] if image_size else []
    settings += ["input_channels=1"] if grey else []
    if is_config := environment.endswith((".yaml", ".yml")) or environment in catalogue():
        config = _load(Path(environment), settings)
    else:
        from jepaworld.config import load_config

        config = load_config(overrides=settings)
    report = examine(
        config.environment_name if is_config else environment,
        config.environment_kwargs,
        config.image_size,
        config.input_channels,
        config.collection.frame_source,
    )
    typer.echo(str(report))
    if not report.usable:
        raise typer.Exit(2)


@app.command(epilog="Example: jepaworld collect config.yaml num_episodes_data_collection=100")
def collect(config: ConfigArgument, overrides: OverridesArgument = None) -> None:
    """Collect a dataset into dataset_dir; an unfinished one is continued."""
    from jepaworld.data.collect import collect as run_collection

    resolved = _load(config, overrides)
    with _interruptible(shlex.join(["jepaworld", *sys.argv[1:]])):
        dataset = run_collection(resolved, progress=_progress())
    _say(
        f"{dataset.path}: {len(dataset.episode_lengths)} episodes, {dataset.num_frames} frames. "
        f"Next: jepaworld inspect {dataset.path}"
    )


@app.command(epilog="Example: jepaworld inspect datasets/two_room --sheet two_room.png")
def inspect(
    dataset: Annotated[Path, typer.Argument(metavar="DATASET", help="Dataset folder.")],
    sheet: Annotated[
        Path | None, typer.Option(help="Where the contact sheet goes \\[DATASET/contact_sheet.png].")
    ] = None,
) -> None:
    """Show what is in a dataset and whether it is intact; write a contact sheet."""
    from jepaworld.data.inspect import contact_sheet, inspect_dataset
    from jepaworld.data.store import EpisodeDataset
    from jepaworld.errors import DatasetError
    from jepaworld.utils.storage import storage_errors

    summary = inspect_dataset(dataset)
    if summary.spec is not None:
        typer.echo(str(summary))
    if summary.problem is not None:
        raise DatasetError(summary.problem)
    sheet = sheet or dataset / "contact_sheet.png"
    with storage_errors(sheet.parent):
        sheet.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet(EpisodeDataset.open(dataset, verify_checksums=False), sheet)
    _say(f"contact sheet: {sheet}")


@app.command(epilog="Example: jepaworld train config.yaml num_epochs=20 --run runs/first")
def train(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG", help="YAML file or recipe; with --resume the run's own if left out."),
    ] = None,
    overrides: OverridesArgument = None,
    run: Annotated[Path | None, typer.Option("--run", help="Run folder \\[runs/ENVIRONMENT-DATE-TIME].")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run.")] = False,
) -> None:
    """Collect or load data, train the JEPA and its state decoder, write the report."""
    from jepaworld.errors import ConfigError
    from jepaworld.runs.folder import RunFolder
    from jepaworld.training_engine import run_training

    if resume and run is None:
        raise ConfigError("--resume needs --run: which run shall go on?")
    if config is not None:
        settings = _load(config, overrides)
    elif run is not None:
        settings = _load_of(run, overrides)
    else:
        raise ConfigError("CONFIG is missing: name a YAML file (`jepaworld init` writes one).")
    progress = _progress()
    run = run or RunFolder.default(settings).path
    with _interruptible(f"jepaworld train --run {shlex.quote(str(run))} --resume"):
        run_training(settings, run, resume, progress)
        _report(run, progress, settings.device)


@app.command(epilog="Example: jepaworld decode runs/first jepa_decoder_training.num_epochs=20")
def decode(run: RunArgument, overrides: OverridesArgument = None) -> None:
    """Train the state decoder of a run anew, from its best JEPA."""
    from jepaworld.training_engine import train_decoder_of_run

    config = _load_of(run, overrides)
    progress = _progress()
    with _interruptible(f"jepaworld train --run {shlex.quote(str(run))} --resume"):
        train_decoder_of_run(run, config, progress)
        _report(run, progress, config.device)


@app.command(epilog="Example: jepaworld report runs/first")
def report(run: RunArgument) -> None:
    """Write a run's report: one self-contained HTML page, and its numbers as JSON."""
    _report(run, _progress(), "auto")


@app.command(epilog="Example: jepaworld evaluate runs/first evaluation.num_episodes=400 planning.horizon=16")
def evaluate(
    run: RunArgument,
    overrides: OverridesArgument = None,
    write_tasks: Annotated[
        Path | None, typer.Option("--write-tasks", help="File for the tasks, to be played again.")
    ] = None,
    tasks: Annotated[Path | None, typer.Option("--tasks", help="File of tasks to play, in place of drawing.")] = None,
) -> None:
    """Measure planning success, probes, collapse and imagination of a run; print a table, write JSON and the report.

    What can be overridden are the settings of planning and evaluation, device and mixed_precision.
    """
    _evaluate(run, overrides or [], _progress(), tasks, write_tasks)


@app.command(epilog="Example: jepaworld plan runs/first --goal goal.png")
def plan(
    run: RunArgument,
    goal: Annotated[Path, typer.Option("--goal", help="Picture of the goal.")],
    overrides: OverridesArgument = None,
    start: Annotated[
        Path | None, typer.Option("--start", help="Picture to begin at \\[the first frame of an episode].")
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Folder for the plan \\[RUN/plan].")] = None,
) -> None:
    """Plan to a goal image: actions as JSON, and what the model imagines of them as a picture."""
    from jepaworld.evaluation_engine import plan_with_run

    target = plan_with_run(run, goal, start, out, overrides or [], _progress())
    _say(f"look at {target}")


@app.command(epilog="Example: jepaworld compare two_room --vary auxiliary_loss.type=vicreg,sigreg --seeds 3")
def compare(
    config: ConfigArgument,
    overrides: OverridesArgument = None,
    vary: Annotated[
        list[str] | None, typer.Option("--vary", metavar="KEY=V1,V2", help="A setting and its values; may be repeated.")
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="Training seeds 0 to N - 1 for each setting.")] = 3,
    out: Annotated[Path | None, typer.Option("--out", help="Folder \\[comparisons/CONFIG].")] = None,
    jobs: Annotated[
        int | None, typer.Option(min=1, help="Runs at once \\[1 on a processor, up to 4 that fit on a GPU].")
    ] = None,
    vary_data: Annotated[bool, typer.Option("--vary-data", help="Allow --vary to change the data.")] = False,
) -> None:
    """Train and evaluate a grid of settings with several seeds on shared data; write one page and one CSV file.

    The same command goes on after an interruption, and adds what is new in the grid.
    """
    from jepaworld.comparison import compare as run_comparison
    from jepaworld.comparison import parse_vary
    from jepaworld.comparison.page import overview

    grid, settings = parse_vary(vary or []), _load(config, overrides)
    folder = out or Path("comparisons") / config.stem
    with _interruptible(shlex.join(["jepaworld", *sys.argv[1:]])):
        found = run_comparison(
            settings, grid, seeds, folder, jobs=jobs, vary_data=vary_data, name=config.stem, progress=_progress()
        )
    typer.echo("\n".join(overview(found.settings)))
    _say(f"look at {found.page}")
    if found.failed:
        raise typer.Exit(1)


@app.command("run-cell", hidden=True)
def run_cell(settings: Path, run: Path, result: Path) -> None:
    """One run of a comparison, which `compare` starts; it ends when that process does."""
    import os
    import signal
    import threading

    from jepaworld.comparison.cell import run_cell as run_one

    def end_with_parent() -> None:
        os.read(0, 1)  # nothing is ever written: this returns when the other end is gone
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=end_with_parent, daemon=True).start()
    run_one(settings, run, result, _progress())


@app.command(epilog="Example: jepaworld demo --run runs/demo")
def demo(
    run: Annotated[Path, typer.Option("--run", help="Run folder; a demo in it is continued.")] = Path("runs/demo"),
) -> None:
    """The whole path on the built-in Two Rooms: collect, train, decode, plan, report. Minutes on two CPU cores."""
    from jepaworld.config import load_config
    from jepaworld.training_engine import run_training

    config = load_config("two_room")
    progress = _progress()
    with _interruptible(f"jepaworld demo --run {shlex.quote(str(run))}"):
        run_training(config, run, True, progress)
        _evaluate(run, [], progress)


def _evaluate(
    run: Path,
    overrides: list[str],
    progress: RichProgress,
    tasks_from: Path | None = None,
    tasks_to: Path | None = None,
) -> None:
    from jepaworld.evaluation_engine import evaluate_run
    from jepaworld.report import read_results
    from jepaworld.report.summary import summary

    planning = evaluate_run(run, overrides, progress, tasks_from=tasks_from, tasks_to=tasks_to)
    progress.message("measuring probes, collapse and imagination; writing the report")
    path = _write_report(run, planning.device)
    typer.echo(summary(read_results(run)))
    if tasks_to is not None:
        progress.message(f"any run plays the same tasks by: jepaworld evaluate RUN --tasks {tasks_to}")
    progress.message(f"look at {path}")


def _report(run: Path, progress: RichProgress, device: str) -> None:
    from jepaworld.report import read_results

    progress.message("writing the report")
    path = _write_report(run, device)
    for finding in read_results(run).findings:
        progress.message(f"- {finding}")
    progress.message(f"look at {path}")


def _write_report(run: Path, device: str) -> Path:
    from jepaworld.report import write_report

    return write_report(run, device=device)
