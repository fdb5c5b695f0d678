"""What UNetTrainer relies on that transformers calls private; runs on the lowest and the newest version allowed."""

import ast
import inspect

import pytest
import torch
from transformers import Trainer

from hub_unets.training.fit import trainer as module
from tests.training.fit.trainers import plain_model

PRIVATE = {"_get_train_sampler", "_save_checkpoint"}
SECTION = "# Overrides of transformers' private methods"


def test_private_names_are_overridden_in_one_section():
    before, section = inspect.getsource(module.UNetTrainer).split(SECTION)
    (owner,) = ast.parse(inspect.getsource(module.UNetTrainer)).body
    overrides = {node.name for node in owner.body if isinstance(node, ast.FunctionDef)}
    private = {name for name in dir(Trainer) if name.startswith("_") and not name.startswith("__")}
    assert overrides & private == PRIVATE
    for name in private:
        assert f"self.{name}(" not in before and f"super().{name}(" not in before, name
    for name in PRIVATE:
        assert f"def {name}(" in section


def test_transformers_calls_what_is_overridden(make_trainer, monkeypatch):
    called = []
    for name in sorted(PRIVATE):
        original = getattr(module.UNetTrainer, name)

        def noted(self, *arguments, _name=name, _original=original, **options):
            called.append(_name)
            return _original(self, *arguments, **options)

        monkeypatch.setattr(module.UNetTrainer, name, noted)
    make_trainer(plain_model()).train()
    assert set(called) == PRIVATE


@pytest.mark.parametrize(("size", "steps"), [(4, 2), (2, 4)])
def test_the_loss_is_divided_once(make_trainer, size, steps):
    """The weights do not depend on the accumulation, whatever transformers divides by."""
    states = []
    for batch, accumulated in ((8, 1), (size, steps)):
        trainer = make_trainer(
            plain_model(), per_device_train_batch_size=batch, gradient_accumulation_steps=accumulated, optim="sgd"
        )
        trainer.train()
        states.append(trainer.model.state_dict())
    for name, value in states[0].items():
        torch.testing.assert_close(states[1][name], value, rtol=1e-4, atol=1e-6, msg=name)


def test_the_log_and_the_state_have_what_is_read_from_them(make_trainer):
    trainer = make_trainer(plain_model(), logging_steps=1)
    trainer.train()
    training = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["step"] for row in training] == [1, 2, 3] and {"epoch", "learning_rate", "seconds"} <= set(training[0])
    assert trainer.state.best_global_step == 3 and "eval_loss" in trainer.evaluate()
    mean = sum(row["loss"] for row in training) / 3
    assert trainer.state.log_history[-2]["train_loss"] == pytest.approx(mean, rel=1e-5)
