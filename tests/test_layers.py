"""Imports point upstream only: the order of the stages is the order of the pipeline."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "qbee"
STAGES = [
    ("errors", "streams", "files", "arrays", "records", "registry", "keras"),
    ("audio",),
    ("data",),
    ("models",),
    ("train",),
    ("prune",),
    ("quantize",),
    ("doctor",),
    ("runtime",),
    ("export",),
    ("search",),
    ("detector",),
    ("verify",),
    ("detect",),
    ("report",),
    ("job",),
    ("field",),
    ("cli",),
    ("__main__",),
]
RANK = {name: rank for rank, names in enumerate(STAGES) for name in names}


def stage_of(path, package):
    return path.relative_to(package).parts[0].removesuffix(".py")


def imported_stages(source):
    """Stages of qbee that a module imports, with the line of each import."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            assert node.level == 0, f"relative import in line {node.lineno}"
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "qbee" and len(parts) > 1 and parts[1] in RANK:
                yield parts[1], node.lineno


def downstream_imports(package):
    found = []
    for path in sorted(package.rglob("*.py")):
        stage = stage_of(path, package)
        if stage == "__init__":
            continue
        for imported, line in imported_stages(path.read_text()):
            if RANK[imported] > RANK[stage]:
                found.append(f"{path.name}:{line}: {stage} imports {imported}")
    return found


def test_no_module_imports_a_later_stage():
    assert downstream_imports(PACKAGE) == []


def test_a_planted_downstream_import_is_found(tmp_path):
    (tmp_path / "audio").mkdir()
    planted = "def f():\n    from qbee.train import fit\n    return fit\n"
    (tmp_path / "audio" / "mel.py").write_text(planted)
    assert downstream_imports(tmp_path) == ["mel.py:2: audio imports train"]


def test_every_module_belongs_to_a_stage():
    names = {stage_of(path, PACKAGE) for path in PACKAGE.rglob("*.py")} - {"__init__"}
    assert names == set(RANK)


@pytest.mark.parametrize(
    "module",
    [
        "qbee",
        "qbee.audio.load",
        "qbee.audio.mel",
        "qbee.audio.synth",
        "qbee.data.labels",
        "qbee.data.folds",
        "qbee.quantize.fixed_point",
        "qbee.quantize.scheme",
        "qbee.search.score",
        "qbee.search.cost",
        "qbee.export.firmware",
        "qbee.export.tflite",
        "qbee.runtime.inspection",
        "qbee.runtime.trial",
        "qbee.report.arena_plot",
        "qbee.report.inspection_table",
        "qbee.report.review_page",
        "qbee.report.trial_table",
        "qbee.detector",
        "qbee.detect.crew",
        "qbee.detect.run",
        "qbee.detect.ears",
        "qbee.field.detecting",
        "qbee.field.reviewing",
        "qbee.detect.sampling",
        "qbee.cli",
    ],
)
def test_importing_it_does_not_import_tensorflow(module):
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_keras_3_imported_first_is_one_clear_error():
    code = (
        "import os; os.environ.pop('TF_USE_LEGACY_KERAS', None)\n"
        "import sys; sys.modules['tensorflow'] = sys\n"
        "import qbee.keras"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "StackError: TensorFlow was imported with Keras 3 before qbee" in done.stderr
