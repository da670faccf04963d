"""The patch registry on real Megatron-Core modules."""

import subprocess
import sys
import textwrap
import threading
import warnings
from pathlib import Path

import pytest
from mindspeed_ms.patches import stand_ins
from mindspeed_ms.patches.registry import Patch, PatchWarning, Registry, State

DIVIDE = "megatron.core.utils:divide"
ROPE = "megatron.core.models.common.embeddings.rotary_pos_embedding:RotaryEmbedding.get_freqs_non_repeated"


@pytest.fixture
def registry():
    """A registry of its own, taken back after the test."""
    registry = Registry()
    yield registry
    registry.disarm()


def run(code: str) -> str:
    """Run ``code`` in a fresh interpreter; its stdout. Fails the test with its stderr when it fails."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def plus_hundred(original, numerator, denominator):
    return original(numerator, denominator) + 100


def test_loaded_module_is_patched_at_once_with_its_copies(registry):
    import megatron.core.tensor_parallel.layers as layers  # holds a copy of divide
    from megatron.core import utils

    original = utils.divide
    assert layers.divide is original
    registry.around(DIVIDE, reason="test")(plus_hundred)
    assert utils.divide(6, 2) == 3, "declaring alone changes nothing"
    registry.arm()
    assert utils.divide(6, 2) == 103
    assert layers.divide is utils.divide
    assert utils.divide.__name__ == "divide"
    registry.arm()
    assert utils.divide(6, 2) == 103, "arming twice must not wrap twice"
    registry.disarm()
    assert utils.divide is original
    assert layers.divide is original
    registry.arm()
    assert layers.divide(6, 2) == 103
    assert [r.state for r in registry.records()] == [State.APPLIED]


def test_copy_in_a_module_of_the_user(registry, monkeypatch):
    from types import ModuleType

    from megatron.core import utils

    user = ModuleType("a_users_script")
    user.my_divide = utils.divide
    monkeypatch.setitem(sys.modules, user.__name__, user)
    registry.around(DIVIDE, reason="test")(plus_hundred)
    registry.arm()
    assert user.my_divide(8, 2) == 104
    registry.disarm()
    assert user.my_divide(8, 2) == 4


def test_each_kind_of_class_attribute(registry):
    import torch
    from megatron.core.models.common.embeddings.rotary_pos_embedding import RotaryEmbedding
    from megatron.core.optimizer.grad_scaler import ConstantGradScaler
    from megatron.core.tensor_parallel.mappings import _ReduceFromModelParallelRegion as Reduce

    mappings = "megatron.core.tensor_parallel.mappings:_ReduceFromModelParallelRegion"
    registry.around(ROPE, reason="method")(lambda original, self, max_seq_len, offset=0: "seen")
    registry.replace(f"{mappings}.forward", reason="staticmethod")(lambda ctx, input_, group: ("own", input_))
    registry.replace("megatron.core.optimizer.grad_scaler:MegatronGradScaler.scale", reason="property")(
        lambda self: self._scale * 2
    )
    forward = vars(Reduce)["forward"]
    registry.arm()
    assert isinstance(vars(Reduce)["forward"], staticmethod)
    assert Reduce.forward(None, 1, None) == ("own", 1)
    scaler = ConstantGradScaler.__new__(ConstantGradScaler)
    scaler._scale = torch.tensor([8.0])
    assert scaler.scale.item() == 16.0
    assert RotaryEmbedding.get_freqs_non_repeated(None, 4) == "seen"
    registry.disarm()
    assert vars(Reduce)["forward"] is forward
    assert scaler.scale.item() == 8.0


def test_factory_makes_a_subclass(registry):
    import megatron.core.timers as timers

    original = timers.Timer

    def make(base):
        class Timer(base):
            extra = 1

        return Timer

    registry.factory("megatron.core.timers:Timer", reason="test")(make)
    registry.arm()
    assert issubclass(timers.Timer, original)
    assert timers.Timer.extra == 1


def test_missing_target_warns_and_is_not_created(registry):
    from megatron.core import utils

    registry.add(Patch("megatron.core.utils:no_such_function", lambda: 0, "test"))
    registry.add(Patch("megatron.core.timers:Timer.no_such_method", lambda self: 0, "test"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        registry.arm()
    said = [str(w.message) for w in caught if w.category is PatchWarning]
    assert len(said) == 2
    assert "no_such_function" in said[1]
    assert not hasattr(utils, "no_such_function")
    assert {r.state for r in registry.records()} == {State.MISSING}


def test_wrong_signature_is_refused(registry):
    from megatron.core import utils

    original = utils.divide
    registry.replace(DIVIDE, reason="test")(lambda numerator, by: 0)
    with pytest.warns(PatchWarning, match="parameter 2 is 'by', the original has 'denominator'"):
        registry.arm()
    assert utils.divide is original
    assert registry.records()[0].state is State.REFUSED


def test_patch_for_another_version_stays_out(registry):
    from megatron.core import utils

    original = utils.divide
    registry.around(DIVIDE, reason="test", versions="<0.12")(plus_hundred)
    registry.arm()
    assert utils.divide is original
    assert registry.records()[0].state is State.OTHER_VERSION


def test_one_owner_per_target_and_release(registry):
    registry.around(DIVIDE, reason="old", versions=">=0.12,<0.14")(plus_hundred)
    registry.around(DIVIDE, reason="new", versions=">=0.14,<0.17")(plus_hundred)
    with pytest.raises(ValueError, match=r"already patched for megatron 0\.16\.1"):
        registry.around(DIVIDE, reason="third", versions=">=0.16")(plus_hundred)
    same = Patch(DIVIDE, plus_hundred, "twice", "==0.11")
    assert registry.add(same) is registry.add(same)


@pytest.mark.parametrize(
    "target", ["megatron.core.utils.divide", "megatron.core:", "megatron.a b:c", ":divide"]
)
def test_malformed_target(target):
    with pytest.raises(ValueError, match="not of the form"):
        Patch(target, None, "test")


def test_arming_twice_from_many_threads(registry):
    from megatron.core import utils

    registry.around(DIVIDE, reason="test")(plus_hundred)
    threads = [threading.Thread(target=registry.arm) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert utils.divide(6, 2) == 103


def test_someone_elses_patch_over_ours_survives_disarming(registry, monkeypatch):
    from megatron.core import utils

    registry.around(DIVIDE, reason="test")(plus_hundred)
    registry.arm()
    ours = utils.divide
    monkeypatch.setattr(utils, "divide", lambda a, b: -1)
    registry.disarm()
    assert utils.divide(1, 1) == -1
    assert "somebody" in registry.records()[0].detail
    monkeypatch.undo()
    assert utils.divide is ours


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Import name of a package that has nothing to do with Megatron; not imported yet."""
    folder = tmp_path / "weather"
    folder.mkdir()
    (folder / "__init__.py").write_text("__version__ = '1.4.0rc1'\nfrom .sky import colour\n")
    (folder / "sky.py").write_text("def colour(hour):\n    return 'blue'\n")
    monkeypatch.syspath_prepend(tmp_path)
    yield "weather"
    for name in [n for n in sys.modules if n.partition(".")[0] == "weather"]:
        del sys.modules[name]


@pytest.mark.parametrize(("versions", "seen"), [(">=1.4", "red"), ("<1.4", "blue"), ("", "red")])
def test_any_package_and_its_own_versions(registry, package, versions, seen):
    registry.replace(f"{package}.sky:colour", reason="test", versions=versions)(lambda hour: "red")
    registry.arm()
    assert package not in sys.modules
    import weather
    import weather.sky

    # weather's own copy was made while weather.sky's import, and so the patching, was under way
    assert (weather.sky.colour(12), weather.colour(12)) == (seen, seen)
    if seen == "blue":
        assert registry.records()[0].detail == "weather is 1.4.0rc1, the patch is for <1.4"
    registry.disarm()
    assert (weather.sky.colour(12), weather.colour(12)) == ("blue", "blue")


def test_one_owner_per_target_where_no_release_is_known(registry):
    registry.replace("weather.sky:colour", reason="test", versions="<1")(lambda hour: "red")
    with pytest.raises(ValueError, match=r"weather.sky:colour is already patched"):
        registry.replace("weather.sky:colour", reason="test", versions=">=1")(lambda hour: "grey")


def test_aliases_are_told_apart_by_name(registry, package):
    """Two targets that get one object get their own objects back, and so do the copies of each."""
    import weather.sky

    weather.sky.shade = lambda hour: "dark"
    weather.colour, weather.shade = weather.sky.colour, weather.sky.shade
    originals = (weather.sky.colour, weather.sky.shade)

    def both(hour):
        return "red"

    registry.replace("weather.sky:colour", reason="test")(both)
    registry.replace("weather.sky:shade", reason="test")(both)
    registry.arm()
    weather.colour = weather.shade = both  # as by `from weather.sky import colour, shade` after the patch
    registry.disarm()
    assert (weather.sky.colour, weather.sky.shade) == originals
    assert (weather.colour, weather.shade) == originals


def test_hook_applies_when_megatron_is_imported_later():
    out = run("""
        import sys
        from mindspeed_ms.patches.registry import Registry
        registry = Registry()

        @registry.around("megatron.core.utils:divide", reason="test")
        def divide(original, numerator, denominator):
            return original(numerator, denominator) + 100

        registry.arm()
        assert not [m for m in sys.modules if m.split(".")[0] in ("megatron", "mindspore")]
        print(registry.table().splitlines()[1])
        from megatron.core.tensor_parallel.layers import divide as copied
        import megatron.core.utils
        assert copied is megatron.core.utils.divide
        print(copied(6, 2))
        registry.disarm()
        print(megatron.core.utils.divide(6, 2), megatron.core.tensor_parallel.layers.divide(6, 2))
    """).splitlines()
    assert out[0].split() == ["megatron.core.utils:divide", "waiting", "test"]
    assert out[1:] == ["103", "3 3"]


def test_armed_while_megatron_is_being_imported():
    """torch's backend autoload arms us inside the first ``import torch``, which may be Megatron's own."""
    out = run("""
        import importlib.abc, sys
        from mindspeed_ms.patches.registry import Registry
        registry = Registry()

        @registry.around("megatron.core.utils:divide", reason="test")
        def divide(original, numerator, denominator):
            return original(numerator, denominator) + 100

        class ArmInsideTorch(importlib.abc.MetaPathFinder):
            def find_spec(self, name, path=None, target=None):
                if name == "torch":
                    sys.meta_path.remove(self)
                    print([m for m in sys.modules if m.startswith("megatron")])
                    registry.arm()

        sys.meta_path.insert(0, ArmInsideTorch())
        import megatron.core.utils
        from megatron.core.tensor_parallel import layers
        print(megatron.core.utils.divide(6, 2), layers.divide(6, 2))
    """).splitlines()
    assert "megatron" in out[0], "the scenario needs Megatron's import under way"
    assert out[1] == "103 103"


def test_every_package_that_stands_in_is_declared():
    folder = Path(stand_ins.__file__).parent
    names = {
        path.stem for path in folder.iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()
    }
    assert names - {"__init__", "lending", "providing"} == {provided.name for provided in stand_ins.PROVIDED}
