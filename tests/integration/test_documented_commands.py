"""Every command in the documents is parsed, and those of Two Rooms are run where that is cheap."""

from __future__ import annotations

import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import typer
import typer.core
import typer.main
from PIL import Image

from jepaworld import cli, load_config, run_training
from jepaworld.config import Config
from jepaworld.report import write_report
from jepaworld.utils.progress import Progress
from tests.integration.conftest import SHORT_EVALUATION, Command, empty_report
from tests.integration.test_commands import overrides

ROOT = Path(__file__).parents[2]
RUN = ["README.md", "docs/06_usage_guide.md", "docs/evaluation.md", "docs/planning.md"]
DOCUMENTS = [*RUN, "docs/bring_your_own.md", "docs/gallery.md", "docs/comparing.md", "docs/recorded_data.md"]
DOCUMENTS += [str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs" / "recipes").glob("*.md"))]
SHELLS = ("bash", "sh", "shell", "console")
TAKES_CONFIG = ("check", "collect", "train")
TAKES_RUN = ("decode", "report", "evaluate", "plan")


def blocks(document: str, languages: tuple[str, ...]) -> list[str]:
    """The fenced blocks of a document in one of these languages."""
    found = re.findall(r"^```(\w+)[^\n]*\n(.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands(document: str) -> list[list[str]]:
    """Arguments of each `jepaworld ...` line, comments and continuation lines resolved."""
    lines = "\n".join(blocks(document, SHELLS)).replace("\\\n", " ").splitlines()
    split = [shlex.split(line.strip().removeprefix("$ "), comments=True) for line in lines]
    # Variables for one command may stand before it: `CUDA_VISIBLE_DEVICES= jepaworld train ...`.
    split = [words[next((i for i, w in enumerate(words) if "=" not in w), 0) :] for words in split]
    return [_before_redirection(words[1:]) for words in split if words and Path(words[0]).name == "jepaworld"]


def _before_redirection(words: list[str]) -> list[str]:
    operators = (">", ">>", "2>", "|", "&&", ";", "&")
    return words[: next((index for index, word in enumerate(words) if word in operators), len(words))]


def parsed(arguments: list[str]) -> typer.Context:
    """The command's context; raises a usage error if there is no such command, option or number of arguments."""
    group = typer.main.get_command(cli.app)
    assert isinstance(group, typer.core.TyperGroup)
    return group.commands[arguments[0]].make_context(arguments[0], arguments[1:])


def documented() -> list:
    return [
        pytest.param(arguments, id=f"{document}: {' '.join(arguments)[:60]}")
        for document in DOCUMENTS
        if (ROOT / document).exists()
        for arguments in commands(document)
    ]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documents_show_commands(document: str) -> None:
    assert commands(document)


@pytest.mark.parametrize("arguments", documented())
def test_documented_commands_exist_with_their_options_and_settings(arguments: list[str]) -> None:
    if arguments[0].startswith("-"):
        assert arguments == ["--help"]
        return
    try:
        context = parsed(arguments)
    except typer.Exit as end:  # --help
        assert end.exit_code == 0
        return
    settings = [*(context.params.get("overrides") or []), *(context.params.get("vary") or [])]
    assert all("=" in setting for setting in settings), settings
    for setting in settings:
        # One by one, as some only go together with what stands in a file.
        key = setting.partition("=")[0]
        assert _exists(key), f"no such setting: {key}"
    named = context.params.get("config")
    if named is not None and len(named.parts) > 1 and named.parts[0] in ("configs", "docs"):
        load_config(ROOT / named, context.params["overrides"] or [])
    elif named is not None and not named.suffix:
        load_config(named)  # a recipe


def _exists(key: str) -> bool:
    node: object = Config().to_dict()
    if key == "jepa_predictor_hidden_dim":
        return True
    for part in key.split("."):
        if not isinstance(node, dict) or (part not in node and node):
            return False
        node = node.get(part, {})
    return True


@pytest.mark.parametrize("document", RUN)
def test_documented_commands_run(
    document: str,
    jepaworld: Command,
    tiny_config: Callable[..., Config],
    finished_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that concern Two Rooms, in the order of the document, with tiny settings after their own."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(ROOT / "configs", "configs")
    for name, text in re.findall(
        r"`(\w+\.py)`:\s*```python\n(.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.M
    ):
        Path(name).write_text(text)
    shutil.copytree(finished_run, "stand-in")
    monkeypatch.setattr("jepaworld.training_engine.run_training", _train_tiny(tiny_config, tmp_path / "shared"))
    ran = []
    for arguments in commands(document):
        extra = _extra(arguments, tiny_config)
        if extra is None:
            continue
        if arguments[0] in TAKES_RUN and not parsed(arguments).params["run"].exists():
            arguments = [*arguments[:1], "stand-in", *arguments[2:]]
        if arguments[0] == "plan":
            goal = parsed(arguments).params["goal"]
            goal.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (64, 64)).save(goal)
        # Reports take longer than all else; the command `report` writes them in earnest.
        monkeypatch.setattr("jepaworld.report.write_report", write_report if arguments[0] == "report" else empty_report)
        outcome = jepaworld(*arguments, *extra)
        assert outcome.code == 0, (arguments, outcome.err)
        ran.append(arguments[0])
    assert ran


def _train_tiny(tiny_config: Callable[..., Config], dataset: Path) -> Callable[..., object]:
    """In place of `run_training`: what `demo` asks for, which takes no overrides, is made tiny."""

    def train(config: Config, run: Path, resume: bool, progress: Progress) -> object:
        if config.num_episodes_data_collection > 100:
            short = {"num_episodes": 4, "max_steps": 6, "num_envs": 4}
            config = tiny_config(dataset_dir=str(dataset), evaluation=short)
        return run_training(config, run, resume, progress)

    return train


def _extra(arguments: list[str], tiny_config: Callable[..., Config]) -> list[str] | None:
    """What makes a command cheap; None if it is not to be run here."""
    if "--help" in arguments:
        return None
    command, parameters = arguments[0], parsed(arguments).params
    own = [setting.partition("=")[0] for setting in parameters.get("overrides") or []]
    if command in ("evaluate", "plan"):
        if "published" in str(parameters["run"]):  # these rules have goals in the other room alone
            own.append("evaluation.reset_options")
        return [text for text in SHORT_EVALUATION if text.partition("=")[0] not in own]
    if command == "compare":  # in tests/integration/test_compare.py
        return None
    if command == "inspect":
        return [] if parameters["dataset"].exists() else None
    if command == "check-env":
        return [] if "TwoRoom" in parameters["environment"] else None
    if command not in TAKES_CONFIG:
        return []
    config, settings = parameters["config"], parameters["overrides"] or []
    if config is None:
        return [] if parameters["run"].exists() else None
    if not config.exists() or any(key in own for key in ("load_model_path", "load_dataset_path")):
        return None
    wanted = load_config(config, settings)
    if wanted.environment_name != "jepaworld/TwoRoom-v0":
        return None
    changed = tiny_config(
        dataset_dir=wanted.dataset_dir,
        max_steps_per_episode_data_collection=wanted.frame_skipping * (wanted.num_transitions + 6),
    )
    return [text for text in overrides(changed) if _makes_cheap(text, own)]


def _makes_cheap(override: str, own: list[str]) -> bool:
    """Not in a section that the document's own command sets, but for sizes and lengths."""
    key = override.partition("=")[0]
    lengths = ("num_ep", "max_steps", "image_size", "steps_per", "jepa_decoder_training.num_epochs", "batch_size")
    sections = [setting.rpartition(".")[0] or setting for setting in own]
    return key.startswith(lengths) or not any(f"{key}.".startswith(f"{section}.") for section in sections)


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_python_is_python(document: str) -> None:
    for block in blocks(document, ("python",)):
        code = compile(block, document, "exec")
        imports = [line for line in block.splitlines() if re.match(r"(import|from) jepaworld", line)]
        exec("\n".join(imports), {})
        assert code.co_names
