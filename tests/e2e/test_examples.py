"""Every command of the README and of the help texts does what it is shown for."""

import re
import shlex
import shutil
from pathlib import Path

import pytest

from quantjit import cli, demo

pytestmark = [pytest.mark.jit, pytest.mark.slow]

ROOT = Path(__file__).resolve().parents[2]
COMMANDS = {
    "analyze", "calibrate", "convert", "inspect", "merge", "quantize", "report", "tune", "verify",
}  # fmt: skip
"""Those whose examples need no more than a network and images."""

# "..." in an example stands for the network and the inputs.
SHORT = "-p net.tnnproto -i images/"


def examples(text):
    """The command lines of a text, as lists of words."""
    found = []
    for line in text.splitlines():
        for part in re.split(r";|&&", line):
            if part.strip().startswith("quantjit "):
                words = shlex.split(part.replace("...", SHORT), comments=True)[1:]
                found += [words] if words[0] in COMMANDS and len(words) > 1 else []
    return found


def blocks(text):
    """What stands between fences."""
    return "".join(text.split("```")[1::2])


README = examples(blocks((ROOT / "README.md").read_text(encoding="utf-8")))
HELP = examples(cli._HELP) + [each for text in cli._EXAMPLES.values() for each in examples(text)]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with everything that examples name."""
    (tmp_path / "data").symlink_to(demo.folder())
    shutil.copytree(demo.folder() / "calib", tmp_path / "images")
    for name in sorted((tmp_path / "images").iterdir())[8:]:
        name.unlink()
    for suffix in ("onnx", "tnnproto", "tnnmodel"):
        shutil.copy(demo.folder() / f"demo.{suffix}", tmp_path / f"net.{suffix}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_links_of_the_readme_lead_somewhere():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    heads = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    anchors = {re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads}
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    assert any(link.endswith(".png") for link in links)
    for link in links:
        if link.startswith("#"):
            assert link[1:] in anchors, link
        elif "://" not in link:
            assert (ROOT / link).is_file(), link
            assert (ROOT / link).stat().st_size < 150_000, link


def test_there_are_examples_of_every_command():
    assert len(README) >= 5
    assert {words[0] for words in HELP} == COMMANDS
    assert {words[0] for words in README} <= COMMANDS


@pytest.mark.parametrize("source", ["README", "help"])
def test_they_run(source, place, capsys):
    for words in {"README": README, "help": HELP}[source]:
        code = cli.main(words)
        out, err = capsys.readouterr()
        assert code == 0, f"{shlex.join(words)}: {err}"
        assert out.strip(), words
        if "-o" in words:
            stem = words[words.index("-o") + 1]
            written = list(place.glob(f"{stem}*"))
            assert written, words


@pytest.mark.parametrize("command", sorted(COMMANDS))
def test_the_help_shows_them(command, capsys):
    assert cli.main([command, "--help"]) == 0
    text = capsys.readouterr().out
    assert cli._EXAMPLES[command].splitlines()[1].strip() in text
