"""An image classifier's run goes to the Hub with its evidence, loads from there, and is proved again."""

import json
import re
from pathlib import Path

import pytest
from PIL import Image

from hfcompress.cli import dispatch
from tests.hub.test_push import NAME, cache_folder, command, hub, push, run_code  # noqa: F401  (two are fixtures)
from tests.hub_server import Hub

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def smoke(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "iot_camera-smoke"
    assert dispatch(["run", "iot_camera", "--smoke", "--run-dir", str(folder)]) == 0
    return folder


def test_it_is_pushed_loaded_by_the_cards_own_lines_and_verified(
    hub: Hub,  # noqa: F811
    smoke: Path,
    tmp_path: Path,
) -> None:
    done = push(hub, smoke)
    assert done.code == 0, done.err
    files = hub.files(NAME)
    assert set(files) >= {
        "config.json", "preprocessor_config.json", "onnx/model_quantized.onnx", "records/int8.json",
        "recipe.lock.json", "report.html", "report.json", "README.md",
    }  # fmt: skip
    (code,) = re.findall("```python\n(.*?)```", files["README.md"].decode(), re.S)
    picture = tmp_path / "image.png"
    Image.new("L", (8, 8), 90).save(picture)
    answer = run_code(hub, code.replace('"image.png"', repr(str(picture))), tmp_path).strip()
    said = command(hub, "predict", NAME, "--image", picture)
    assert said.out.split()[0] == answer, said.err

    done = command(hub, "verify", NAME)
    assert done.code == 0, done.out + done.err
    assert "holds       labels as the run gave them" in done.out
    assert "holds       accuracy on 100 images" in done.out
    branch = hub.repositories[NAME].branches["main"]
    report = json.loads(files["report.json"])
    row = next(model for model in report["models"] if model["name"] == "int8")
    row["accuracy"]["all"]["accuracy"] += 0.01
    branch.append(branch[-1] | {"report.json": hub.keep(json.dumps(report).encode())})
    done = command(hub, "verify", NAME)
    assert done.code == 1
    assert "DIFFERS     metrics of the run's answers" in done.out
