"""Every command in the README and the usage guide is parsed, and run where that is cheap."""

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

from jepaworld import cli, load_config
from jepaworld.config import Config
from tests.integration.conftest import Command
from tests.integration.test_commands import overrides

ROOT = Path(__file__).parents[2]
DOCUMENTS = ["README.md", "docs/06_usage_guide.md"]
SHELLS = ("bash", "sh", "shell", "console")
TAKES_CONFIG = ("check", "collect", "train")


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
    settings = context.params.get("overrides") or []
    assert all("=" in setting for setting in settings), settings
    for setting in settings:
        # One by one, as some only go together with what stands in a file.
        key = setting.partition("=")[0]
        assert _exists(key), f"no such setting: {key}"
    named = context.params.get("config")
    if named is not None and len(named.parts) > 1 and named.parts[0] in ("configs", "docs"):
        load_config(ROOT / named, settings)


def _exists(key: str) -> bool:
    node: object = Config().to_dict()
    if key == "jepa_predictor_hidden_dim":
        return True
    for part in key.split("."):
        if not isinstance(node, dict) or (part not in node and node):
            return False
        node = node.get(part, {})
    return True


@pytest.mark.parametrize("document", DOCUMENTS)
def test_documented_commands_run(
    document: str,
    jepaworld: Command,
    tiny_config: Callable[..., Config],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """All that concern Two Rooms, in the order of the document, with tiny settings after their own."""
    monkeypatch.chdir(tmp_path)
    if (ROOT / "configs").exists():
        shutil.copytree(ROOT / "configs", "configs")
    for name, text in re.findall(
        r"`(\w+\.py)`:\s*```python\n(.*?)^```", (ROOT / document).read_text(), re.DOTALL | re.M
    ):
        Path(name).write_text(text)
    train, report = cli._train, cli._report
    dataset = str(tmp_path / "shared")

    def tiny_demo(_config: Config, run: Path | None, resume: bool) -> None:
        train(tiny_config(dataset_dir=dataset), run, resume)

    ran = []
    for arguments in commands(document):
        if "--help" in arguments:
            continue
        parameters = parsed(arguments).params
        extra: list[str] = []
        if arguments[0] in TAKES_CONFIG:
            config, settings = parameters["config"], parameters["overrides"] or []
            if config is None:
                if not parameters["run"].exists():
                    continue
            elif not config.exists() or load_config(config, settings).environment_name != "jepaworld/TwoRoom-v0":
                continue
            else:
                own = [setting.partition("=")[0] for setting in settings]
                changed = tiny_config(dataset_dir=load_config(config, settings).dataset_dir)
                extra = [text for text in overrides(changed) if _makes_cheap(text, own)]
                if any(key in own for key in ("load_model_path", "load_dataset_path")):
                    continue
        elif arguments[0] in ("decode", "report"):
            if not parameters["run"].exists():
                continue
        elif (arguments[0] == "inspect" and not parameters["dataset"].exists()) or (
            arguments[0] == "check-env" and "TwoRoom" not in parameters["environment"]
        ):
            continue
        monkeypatch.setattr(cli, "_train", tiny_demo if arguments[0] == "demo" else train)
        # Reports take longer than all else; the command `report` writes them in earnest.
        monkeypatch.setattr(cli, "_report", report if arguments[0] == "report" else lambda *_: None)
        outcome = jepaworld(*arguments, *extra)
        assert outcome.code == 0, (arguments, outcome.err)
        ran.append(arguments[0])
    assert ran


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
