"""Adapters of other projects: registered by a call, a decorator or an entry point, and refused by name."""

from __future__ import annotations

import shutil
import sys
import textwrap
from importlib.metadata import Distribution

import pytest
from families import edit_config
from transformers import Qwen3VLForConditionalGeneration

from futurel1 import LatentReasoner
from futurel1.errors import CheckpointError, ConfigError
from futurel1.models import BACKBONES, Backbone
from futurel1.models.backbones import Qwen3VLBackbone, backbone_class, register_backbone
from futurel1.models.checkpoint_folders import TINY_FOLDER


@pytest.fixture(autouse=True)
def registry():
    """A registry that the test may change."""
    known = dict(BACKBONES)
    yield
    BACKBONES.clear()
    BACKBONES.update(known)


def make_backbone(model_type="other_vl", stock_class="Qwen3VLForConditionalGeneration", name="OtherBackbone"):
    return type(name, (Backbone,), {"model_type": model_type, "stock_class": stock_class})


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with entry points, and its module, where Python finds installed packages."""

    def put(distribution, entries, module, source):
        info = tmp_path / f"{distribution.replace('-', '_')}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.0\n")
        lines = "".join(f"{name} = {value}\n" for name, value in entries.items())
        (info / "entry_points.txt").write_text(f"[futurel1.backbones]\n{lines}")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(source))
        assert Distribution.at(info).name == distribution

    monkeypatch.syspath_prepend(str(tmp_path))
    yield put
    for name in [name for name in sys.modules if name.startswith("vendor_")]:
        del sys.modules[name]


SOURCE = """
    from futurel1.models.backbones import Qwen3VLBackbone


    class VendorBackbone(Qwen3VLBackbone):
        model_type = "vendor_vl"
"""


def test_a_registered_class_is_found_and_returned():
    backbone = make_backbone()
    assert register_backbone(backbone) is backbone
    assert backbone_class("other_vl") is backbone is BACKBONES["other_vl"]


def test_as_a_decorator():
    @register_backbone
    class Decorated(Qwen3VLBackbone):
        model_type = "decorated_vl"

    assert backbone_class("decorated_vl") is Decorated
    assert backbone_class("qwen3_vl") is Qwen3VLBackbone


def test_a_registered_family_loads_and_decodes_as_its_stock_class(tmp_path, monkeypatch):
    """A checkpoint of another model_type, whose stock class is one of `transformers`."""
    import transformers

    class OtherConfig(transformers.Qwen3VLConfig):
        model_type = "other_vl"

    class OtherForConditionalGeneration(Qwen3VLForConditionalGeneration):
        config_class = OtherConfig

    monkeypatch.setattr(transformers, "OtherForConditionalGeneration", OtherForConditionalGeneration, raising=False)
    folder = shutil.copytree(TINY_FOLDER, tmp_path / "other")
    edit_config(folder, model_type="other_vl")
    with pytest.raises(CheckpointError, match="no backbone adapter for model_type 'other_vl'"):
        LatentReasoner.from_pretrained(folder)
    backbone = register_backbone(make_backbone(stock_class="OtherForConditionalGeneration"))
    reasoner = LatentReasoner.from_pretrained(folder)
    assert type(reasoner.backbone) is backbone
    assert type(reasoner.backbone.model) is OtherForConditionalGeneration


def test_registering_a_class_again_replaces_it():
    first, second = make_backbone(), make_backbone()
    register_backbone(first)
    register_backbone(second)
    assert backbone_class("other_vl") is second


def test_two_adapters_of_one_family_are_refused():
    register_backbone(make_backbone())
    with pytest.raises(ConfigError, match=r"'other_vl' of .*Rival already has the adapter .*OtherBackbone; give yours"):
        register_backbone(make_backbone(name="Rival"))
    with pytest.raises(ConfigError, match=r"'qwen3_vl' of .* already has the adapter .*Qwen3VLBackbone"):
        register_backbone(make_backbone("qwen3_vl"))


@pytest.mark.parametrize("thing", [object(), dict, "qwen3_vl", None], ids=["object", "class", "name", "none"])
def test_what_is_no_backbone_is_refused(thing):
    with pytest.raises(ConfigError, match=r"a backbone is a subclass of futurel1\.models\.Backbone, got"):
        register_backbone(thing)


@pytest.mark.parametrize("missing", ["model_type", "stock_class"])
def test_a_class_without_names_is_refused(missing):
    names = {"model_type": "other_vl", "stock_class": "Qwen3VLForConditionalGeneration"}
    del names[missing]
    with pytest.raises(ConfigError, match=f"Nameless has no {missing}: set it"):
        register_backbone(type("Nameless", (Backbone,), names))


def test_an_entry_point_is_loaded_when_its_family_is_asked_for(install):
    install("vendor-vl", {"vendor_vl": "vendor_models:VendorBackbone"}, "vendor_models", SOURCE)
    assert "vendor_models" not in sys.modules
    assert backbone_class("qwen3_vl") is Qwen3VLBackbone
    assert "vendor_models" not in sys.modules
    found = backbone_class("vendor_vl")
    assert (found.__module__, found.__name__) == ("vendor_models", "VendorBackbone")
    assert backbone_class("vendor_vl") is found is BACKBONES["vendor_vl"]


def test_a_registered_class_goes_before_an_entry_point(install):
    install("vendor-vl", {"vendor_vl": "vendor_models:VendorBackbone"}, "vendor_models", SOURCE)
    mine = register_backbone(make_backbone("vendor_vl"))
    assert backbone_class("vendor_vl") is mine
    assert "vendor_models" not in sys.modules


def test_the_error_names_entry_points_too(install):
    install("vendor-vl", {"vendor_vl": "vendor_models:VendorBackbone"}, "vendor_models", SOURCE)
    with pytest.raises(
        CheckpointError, match=r"'llava'; there are \['qwen2_5_vl', 'qwen3_5', 'qwen3_vl', 'vendor_vl'\]"
    ):
        backbone_class("llava")
    assert "vendor_models" not in sys.modules


def test_two_packages_for_one_family(install):
    install("vendor-a", {"vendor_vl": "vendor_a:VendorBackbone"}, "vendor_a", SOURCE)
    install("vendor-b", {"vendor_vl": "vendor_b:VendorBackbone"}, "vendor_b", SOURCE)
    pattern = r"vendor_a:VendorBackbone \(vendor-a\), vendor_b:VendorBackbone \(vendor-b\); uninstall all but one"
    with pytest.raises(CheckpointError, match=pattern):
        backbone_class("vendor_vl")


@pytest.mark.parametrize(
    ("value", "source", "message"),
    [
        ("vendor_gone:VendorBackbone", SOURCE, "cannot be loaded .*No module named 'vendor_gone'"),
        ("vendor_models:Missing", SOURCE, "cannot be loaded .*no attribute 'Missing'"),
        ("vendor_models:VALUE", "VALUE = 3", "a backbone is a subclass of futurel1.models.Backbone, got 3"),
        ("vendor_models:VendorBackbone", SOURCE.replace("vendor_vl", "renamed_vl"), "another model_type"),
    ],
    ids=["module", "attribute", "value", "model_type"],
)
def test_an_entry_point_that_gives_no_adapter(install, value, source, message):
    install("vendor-vl", {"vendor_vl": value}, "vendor_models", source)
    with pytest.raises(CheckpointError, match=f"(?s)entry point '{value}' .* model_type 'vendor_vl'.*{message}"):
        backbone_class("vendor_vl")
