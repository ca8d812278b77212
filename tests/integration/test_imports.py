"""Only a framework's own module imports it; without the framework, the error names the extra."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("extra", "imported"), [("flower", "flwr.app"), ("nvflare", "nvflare.apis.dxo")]
)
def test_a_missing_framework_names_its_extra(
    extra: str, imported: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"resfed_codec.integrations.{extra}"
    monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, imported.partition(".")[0], None)
    monkeypatch.setitem(sys.modules, imported, None)
    with pytest.raises(ImportError, match=rf"pip install 'resfed-codec\[{extra}\]'"):
        importlib.import_module(name)


def test_the_package_imports_no_framework() -> None:
    code = "import resfed_codec, sys; print({'flwr', 'nvflare', 'torch'} & set(sys.modules))"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.strip() == "set()"
