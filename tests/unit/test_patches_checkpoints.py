"""What is patched into Megatron's saving and loading."""

import pytest
from test_transformer_engine import succeeds


def test_extra_states_that_were_not_saved_are_not_asked_for(tmp_path):
    succeeds(f"""
        from megatron.core import dist_checkpointing
        from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
        from torch.distributed.checkpoint.api import CheckpointException

        def extra(name):
            return ShardedObject(f"{{name}}._extra_state", torch.zeros(4), (1,), (0,))

        def weight(value):
            return ShardedTensor.from_rank_offsets("weight", torch.full((3,), value))

        dist_checkpointing.save({{"weight": weight(2.0), "old": extra("old")}}, {str(tmp_path)!r})
        asked = {{"weight": weight(0.0), "layers": [{{"old": extra("old"), "new": extra("new")}}]}}
        loaded = dist_checkpointing.load(asked, {str(tmp_path)!r})
        assert loaded["weight"].tolist() == [2.0] * 3
        assert loaded["layers"][0].keys() == {{"old"}}
        try:
            dist_checkpointing.load({{"other": ShardedObject("other", None, (1,), (0,))}}, {str(tmp_path)!r})
        except CheckpointException as error:
            assert "other" in str(error), error
        else:
            raise AssertionError("an object that is no extra state must be there")
    """)


@pytest.mark.parametrize("trained", [True, False])
def test_optimizer_state_to_load_into_is_complete(trained):
    succeeds(f"""
        from megatron.core.optimizer.optimizer import ChainedOptimizer, FP32Optimizer
        from megatron.core.optimizer.optimizer_config import OptimizerConfig
        from transformer_engine.pytorch.optimizers import FusedAdam

        def init_state(adam, config):
            for group in adam.param_groups:
                for p in group["params"]:
                    if not adam.state[p]:
                        adam.state[p] |= {{"exp_avg": torch.zeros_like(p), "exp_avg_sq": torch.zeros_like(p)}}

        def optimizer(steps):
            parameter = torch.nn.Parameter(torch.ones(3, device="cuda"))
            parameter.grad = torch.ones_like(parameter)
            adam = FusedAdam([parameter])
            for _ in range(steps):
                adam.step()
            config = OptimizerConfig(optimizer="adam", lr=0.1)
            return ChainedOptimizer([FP32Optimizer(adam, config, init_state)])

        saved = optimizer(2).state_dict()
        made = optimizer(2 * {trained}).state_dict(is_loading=True)
        assert made["param_groups"][0].keys() == saved["param_groups"][0].keys()
        assert made["param_groups"][0]["step"] == 2 * {trained}
        assert made["state"][0].keys() == saved["state"][0].keys()
    """)


def test_a_persistent_worker_that_ends_is_one_sentence():
    out = succeeds("""
        import functools, os
        from megatron.core.dist_checkpointing.strategies import async_utils

        def order(preload):
            args = ("wrote", None, "what it was sent")
            say = functools.partial(print, flush=True)
            return async_utils.AsyncRequest(say, args, [], preload_fn=preload)

        caller = async_utils.PersistentAsyncCaller()
        caller.schedule_async_call(order(functools.partial(str, "what it was sent")))
        while not caller.is_current_async_call_done(blocking=True, no_dist=True):
            pass
        try:
            caller.schedule_async_call(order(functools.partial(os._exit, 5)))
        except RuntimeError as error:
            print(error, flush=True)
        caller.close()
    """)
    assert "wrote what it was sent what it was sent" in out
    (sentence,) = [line for line in out.splitlines() if "status" in line]
    assert "has ended with status 5: the checkpoint that it was writing is lost" in sentence
    assert sentence.endswith("without --async-save the rank writes by itself")
