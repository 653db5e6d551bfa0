"""A saved folder loads, by its own copy of the code, in a virtual environment that lacks this package."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

import modeling_moon2

CODE_FILES = ("configuration_moon2.py", "layout_moon2.py", "modeling_moon2.py", "patches_moon2.py",
              "processing_moon2.py")  # fmt: skip
# huggingface_hub.dataclasses is what the configurations of transformers are made with.
MAY_IMPORT = ("torch", "transformers", "huggingface_hub.dataclasses", "numpy", "PIL", "collections.abc",
              "dataclasses", "io", "math", "os", "re", "typing")  # fmt: skip
# Names that reach files, the network, other programs or code made of text, wherever they stand.
REACHES_OUT = set(
    "open eval exec compile __import__ globals getattr setattr delattr input breakpoint system popen remove unlink "
    "rmdir mkdir makedirs rename environ getenv putenv walk listdir scandir fromfile tofile memmap load save savez "
    "loadtxt savetxt hub load_state_dict_from_url load_library write write_text write_bytes read_text read_bytes "
    "import_module from_pretrained save_pretrained push_to_hub urlopen request show".split()
)
EMBED = """
import sys
import numpy as np
from PIL import Image

try:
    import modeling_moon2
    raise SystemExit("moon2 is installed here")
except ImportError:
    pass
from transformers import AutoConfig, AutoModel, AutoProcessor

folder, pictures, output = sys.argv[1:]
images = [Image.fromarray(pixels) for pixels in np.load(pictures)]
processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
assert AutoConfig.from_pretrained(folder, trust_remote_code=True).model_type == "moon2"
inputs = processor(text=["red mug", None, "navy shoes"], images=[None, images[0], images[1:]])
views = model.encode_views(**inputs)
vectors = [model(**inputs).embeddings, views.text_embeddings, views.image_embeddings, views.routing.gate_sums]
np.savez(output, *(v.detach().numpy() for v in vectors))
for part in (model, processor):
    part.save_pretrained(folder + "-again")
again = AutoModel.from_pretrained(folder + "-again", trust_remote_code=True).eval()
assert (again(**inputs).embeddings == model(**inputs).embeddings).all()
"""


@pytest.fixture(scope="session")
def bare_python(tmp_path_factory) -> Path:
    """Python of a second virtual environment with everything installed here but moon2.

    `MOON2_BARE_PYTHON` names one that was made with pip; else one is made whose packages are links to this one's.
    """
    if "MOON2_BARE_PYTHON" in os.environ:
        return Path(os.environ["MOON2_BARE_PYTHON"])
    folder = tmp_path_factory.mktemp("bare")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    links = folder / "packages"
    links.mkdir()
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not entry.name.startswith(("modeling_moon2", "moon2", "__editable__")) and entry.suffix != ".pth":
            (links / entry.name).symlink_to(entry)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    (folder / "venv" / "lib" / version / "site-packages" / "packages.pth").write_text(f"{links}\n")
    return folder / "venv" / "bin" / "python"


@pytest.fixture(scope="module")
def saved(tiny, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    model, processor = tiny
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_code_travels_with_the_weights(saved):
    package = Path(modeling_moon2.__file__).parent
    for name in CODE_FILES:
        assert (saved / name).read_bytes() == (package / name).read_bytes(), name
    assert (saved / "model.safetensors").exists() and not list(saved.glob("*.bin"))


@pytest.mark.parametrize("name", CODE_FILES)
def test_the_code_imports_little_and_reaches_for_nothing_but_the_picture_it_is_given(name):
    tree = ast.parse((Path(modeling_moon2.__file__).parent / name).read_text(encoding="utf-8"))
    imported = [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    imported += [node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and not node.level]
    for module in imported:
        assert any(module == allowed or module.startswith(f"{allowed}.") for allowed in MAY_IMPORT), module
    named = [node.id for node in ast.walk(tree) if isinstance(node, ast.Name)]
    whole = {ast.unparse(node): node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    # `image.load` decodes the pixels of a picture that is open
    named += [word for of, word in whole.items() if of not in ("re.compile", "image.load")]
    reaching = [word for word in named if word in REACHES_OUT]
    # `Image.open` in `open_image`: a file of the caller's, or bytes
    assert reaching == (["open"] if name == "processing_moon2.py" else []), name
    of_os = [ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)
             and isinstance(node.value, ast.Name) and node.value.id == "os"]  # fmt: skip
    assert set(of_os) <= {"os.PathLike"}


def test_embeddings_are_equal_where_moon2_is_not_installed(saved, tiny, bare_python, make_image, tmp_path):
    images = [make_image(seed) for seed in range(3)]
    np.save(tmp_path / "pictures.npy", np.stack([np.asarray(image) for image in images]))
    command = [bare_python, "-c", EMBED, saved, tmp_path / "pictures.npy", tmp_path / "vectors.npz"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"}
    result = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-3000:]

    model, processor = tiny
    inputs = processor(text=["red mug", None, "navy shoes"], images=[None, images[0], images[1:]])
    with torch.no_grad():
        views = model.encode_views(**inputs)
        expected = [model(**inputs).embeddings, views.text_embeddings, views.image_embeddings, views.routing.gate_sums]
    got = np.load(tmp_path / "vectors.npz")
    for name, vectors in zip(got.files, expected, strict=True):
        np.testing.assert_allclose(got[name], vectors.numpy(), atol=1e-6, rtol=1e-6)
