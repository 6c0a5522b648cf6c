"""Rules on the model's file, the pictures and the machine: what triggers each, and what does not."""

import os
import shutil
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
from PIL import Image

from engine.dataset.duplicates import DuplicateGroup
from engine.hardware import Card
from engine.models.inspect import inspect_model
from engine.outlay import disk_needs
from engine.plan import make_plan
from engine.plan_facts import PlanFacts, gather_facts
from engine.rules import machine, model, plan
from engine.rules.machine import MachineSubject, Need
from engine.rules.model import ModelSubject
from engine.rules.plan import PlanSubject
from engine.rules.rule import applied
from engine.settings import Settings

from .run_support import new_folder, pictures, tiny_model

FULL = {"unet": 860_000_000, "text_encoder": 123_000_000, "vae": 84_000_000}
OLD = Card(name="RTX 2080", total_bytes=8 << 30, free_bytes=8 << 30, capability=(7, 5))
NEW = replace(OLD, name="RTX 3060", capability=(8, 6))


def settings_of(**values):
    return Settings().replace(**values)


@cache
def tiny_info():
    return inspect_model(tiny_model())


def info_of(family="sd1", prediction="epsilon", parameters=None):
    return replace(tiny_info(), family=family, prediction_type=prediction, parameters=parameters or FULL)


# code -> (settings, model, settings that do not trigger it, their model)
MODEL_CASES = {
    "v2-mismatch": ({"v2": True}, info_of(), {"v2": False}, info_of()),
    "prediction-unknown": ({}, info_of("sd2", None), {"v_parameterization": True}, info_of("sd2", None)),
    "prediction-mismatch": (
        {"v_parameterization": True}, info_of(), {"v_parameterization": True}, info_of("sd2", "v_prediction"),
    ),
    "unusual-rate": ({"learning_rate": 1e-4}, info_of(), {"learning_rate": 1e-4}, tiny_info()),
    "foreign-vae": ({"vae": "v"}, info_of(), {}, info_of()),
}  # fmt: skip


@pytest.mark.parametrize("code", MODEL_CASES)
def test_a_rule_on_the_model(code):
    """Settings against what the file says."""
    values, info, good, other = MODEL_CASES[code]
    subject = ModelSubject(settings=settings_of(**values), info=info)

    assert code in codes(model.RULES, subject)
    assert code not in codes(model.RULES, ModelSubject(settings=settings_of(**good), info=other))


@pytest.mark.parametrize(
    ("values", "name"),
    [
        ({"learning_rate": 1e-8}, "learning_rate"),
        ({"learning_rate": 5e-6, "optimizer_type": "Lion"}, "learning_rate"),
        ({"learning_rate_te": 1e-3, "train_text_encoder": True}, "learning_rate_te"),
        ({"learning_rate": 1e-3, "train_hypernetwork": True}, "learning_rate"),
    ],
)
def test_rates_outside_the_usual_range(values, name):
    """Below, above, for Lion, for the text encoder; also where the model is on a hub and its size is not known."""
    for info in (info_of(), None):
        (found,) = applied(model.RULES, ModelSubject(settings=settings_of(**values), info=info))
        assert (found.code, found.setting) == ("unusual-rate", name)
        mended = settings_of(**{**values, **dict(found.values)})
        assert applied(model.RULES, ModelSubject(settings=mended, info=info)) == ()


def codes(rules, subject):
    return {problem.code for problem in applied(rules, subject)}


# ---- pictures


@cache
def cache_dir():
    return new_folder()


def plan_of(folder=None, **values):
    given = {"train_data_dir": str(folder or pictures()), "resolution": "64,64", "max_train_steps": 20, **values}
    return make_plan(settings_of(**given), cache_dir=cache_dir())


def subject_of(folder=None, **values):
    made = plan_of(folder, **values)
    return PlanSubject(plan=made, facts=gather_facts(made, cache_dir=cache_dir()))


BUCKETS = {"enable_bucket": True, "min_bucket_reso": 64, "max_bucket_reso": 128}

# code -> (settings that trigger it, settings that do not); 7 pictures of three shapes
PLAN_CASES = {
    "short-batches": ({**BUCKETS, "train_batch_size": 4, "resolution": "128,64"}, {"train_batch_size": 4}),
    "small-epoch": ({"gradient_accumulation_steps": 9}, {"gradient_accumulation_steps": 7}),
    "few-epochs": ({"max_train_steps": 3}, {"max_train_steps": 7}),
    "many-epochs": ({"max_train_steps": 800}, {"max_train_steps": 700}),
    "beyond-the-run": ({"save_every_n_steps": 21}, {"save_every_n_steps": 20}),
    "much-cut": (
        {"min_bucket_reso": 64, "max_bucket_reso": 128, "resolution": "128,64"}, {**BUCKETS, "resolution": "128,64"},
    ),
    "enlarged": ({"resolution": "128,128"}, {**BUCKETS, "bucket_no_upscale": True, "max_bucket_reso": 64}),
    "long-captions": ({"caption_suffix": "word " * 80}, {"caption_suffix": "word " * 80, "max_token_length": 150}),
}  # fmt: skip
BY_FACTS = {"one-caption", "mirrored-words", "duplicates", "old-npz", "masks", "no-alpha"}  # Tested one by one below.


@pytest.mark.parametrize("code", PLAN_CASES)
def test_a_rule_on_the_plan(code):
    """On real pictures."""
    values, good = PLAN_CASES[code]

    assert code in codes(plan.RULES, subject_of(**values))
    assert code not in codes(plan.RULES, subject_of(**good))


@pytest.mark.parametrize("code", [code for code in PLAN_CASES if code not in {"short-batches", "enlarged"}])
def test_a_fix_of_the_plan_mends_it(code):
    """The change that `f` applies."""
    values, _ = PLAN_CASES[code]
    (found,) = [problem for problem in applied(plan.RULES, subject_of(**values)) if problem.code == code]

    assert not found.values or code not in codes(plan.RULES, subject_of(**{**values, **dict(found.values)}))
    assert found.values or code == "many-epochs"


def test_captions_that_say_left_while_pictures_are_mirrored(tmp_path):
    """Only with flip_aug, and only whole words."""
    shutil.copytree(pictures(), tmp_path / "p")
    (tmp_path / "p" / "0.caption").write_text("a cat on the Left, bright")
    (tmp_path / "p" / "1.caption").write_text("a leftover cake")
    made = plan_of(tmp_path / "p", flip_aug=True)
    facts = gather_facts(made, cache_dir=cache_dir())

    assert facts.num_sided == 1
    assert "mirrored-words" in codes(plan.RULES, PlanSubject(plan=made, facts=facts))
    assert "mirrored-words" not in codes(plan.RULES, subject_of(tmp_path / "p"))


def test_pictures_that_share_one_caption(tmp_path):
    """Or have different ones."""
    shutil.copytree(pictures(), tmp_path / "p")
    for number in range(7):
        (tmp_path / "p" / f"{number}.caption").write_text("photo")

    assert "one-caption" in codes(plan.RULES, subject_of(tmp_path / "p"))
    assert "one-caption" not in codes(plan.RULES, subject_of())


def test_equal_files_under_two_names(tmp_path):
    """By content."""
    shutil.copytree(pictures(), tmp_path / "p")
    shutil.copy(tmp_path / "p" / "0.png", tmp_path / "p" / "copy.png")

    (found,) = [p for p in applied(plan.RULES, subject_of(tmp_path / "p")) if p.code == "duplicates"]
    assert "2 files hold only 1 different pictures (0.png = copy.png)" in found.message
    assert "duplicates" not in codes(plan.RULES, subject_of())


def test_a_cache_older_than_its_picture(tmp_path):
    """sd-scripts' .npz files are looked at where latents are cached."""
    shutil.copytree(pictures(), tmp_path / "p")
    npz = tmp_path / "p" / "0.npz"
    npz.write_bytes(b"x")
    os.utime(npz, (1, 1))

    assert "old-npz" in codes(plan.RULES, subject_of(tmp_path / "p", cache_latents=True))
    assert "old-npz" not in codes(plan.RULES, subject_of(tmp_path / "p"))


def test_masks_that_are_missing_or_of_another_size_are_named(tmp_path):
    """Only where they weigh the loss; the first few by name."""
    shutil.copytree(pictures(), tmp_path / "p")
    shutil.copytree(pictures(), tmp_path / "masks")
    values = {"conditioning_data_dir": str(tmp_path / "masks"), "masked_loss": True}
    assert "masks" not in codes(plan.RULES, subject_of(tmp_path / "p", **values))

    (tmp_path / "masks" / "3.png").unlink()
    Image.new("RGB", (32, 32)).save(tmp_path / "masks" / "5.png")
    (found,) = [
        problem for problem in applied(plan.RULES, subject_of(tmp_path / "p", **values)) if problem.code == "masks"
    ]

    assert found.severity == "error"
    assert "3.png has none, that of 5.png is 32x32, not 64x64" in found.message
    assert "masks" not in codes(plan.RULES, subject_of(tmp_path / "p", **{**values, "masked_loss": False}))


def test_pictures_without_the_alpha_channel_that_weighs_the_loss_are_named(tmp_path):
    """A warning where most have none, a remark where few."""
    shutil.copytree(pictures(), tmp_path / "p")
    rule = "no-alpha"
    assert rule not in codes(plan.RULES, subject_of(tmp_path / "p"))
    (all_bare,) = [
        problem for problem in applied(plan.RULES, subject_of(tmp_path / "p", alpha_mask=True)) if problem.code == rule
    ]
    for path in sorted((tmp_path / "p").glob("*.png"))[1:]:
        with Image.open(path) as image:
            image.convert("RGBA").save(path)
    (one_bare,) = [
        problem for problem in applied(plan.RULES, subject_of(tmp_path / "p", alpha_mask=True)) if problem.code == rule
    ]

    assert (all_bare.severity, one_bare.severity) == ("warning", "info")
    assert "1 of 7 pictures have no alpha channel: 0.png" in one_bare.message


def test_rules_that_need_facts_are_silent_without_them():
    """As in the wizard before every caption has been read."""
    made = plan_of()
    group = DuplicateGroup(rows=(0, 1), content="x")
    told = PlanFacts(captions=(), tokens_N=made.repeats_M + 100, num_sided=1, duplicates=(group,), old_npz=("a",))

    assert not codes(plan.RULES, PlanSubject(plan=made)) & {"long-captions", "mirrored-words", "duplicates", "old-npz"}
    assert codes(plan.RULES, PlanSubject(plan=made, facts=told)) >= {"long-captions", "mirrored-words", "old-npz"}


# ---- machine


def machine_of(*cards, info=None, disks=(), available=1 << 40, **values):
    return MachineSubject(
        settings=settings_of(**values), cards=cards, info=info, disks=disks, available_bytes=available
    )


def need(num_bytes):
    return (Need(setting="output_dir", place="output_dir", num_bytes=num_bytes, free_bytes=100),)


MACHINE_CASES = {
    "bf16-on-old-card": (machine_of(OLD, mixed_precision="bf16"), machine_of(NEW, mixed_precision="bf16")),
    "fp16-without-card": (machine_of(mixed_precision="fp16"), machine_of(OLD, mixed_precision="fp16")),
    "fp16-on-new-card": (machine_of(NEW, mixed_precision="fp16"), machine_of(OLD, mixed_precision="fp16")),
    "fp32-on-card": (machine_of(NEW), machine_of()),
    "xformers-without-card": (machine_of(xformers=True), machine_of(OLD, xformers=True)),
    "full-model-without-card": (machine_of(info=info_of()), machine_of(info=tiny_info())),
    "disk-full": (machine_of(disks=need(101)), machine_of(disks=need(100))),
    "disk-low": (machine_of(disks=need(95)), machine_of(disks=need(90))),
    "memory-low": (machine_of(info=info_of(), available=1 << 30), machine_of(info=tiny_info(), available=1 << 30)),
}


@pytest.mark.parametrize("code", MACHINE_CASES)
def test_a_rule_on_the_machine_says_that_it_speaks_of_this_machine(code):
    """And without a card, what only a card could do is a remark: that machine is rarely the one that trains."""
    bad, good = MACHINE_CASES[code]

    (found,) = [problem for problem in applied(machine.RULES, bad) if problem.code == code]
    assert "this machine" in found.message
    assert code not in codes(machine.RULES, good)
    assert bad.cards or bad.disks or code == "memory-low" or found.severity == "info"


def test_every_rule_has_a_case():
    """In one of the tables above."""
    assert {rule.code for rule in model.RULES} == MODEL_CASES.keys()
    assert {rule.code for rule in plan.RULES} == PLAN_CASES.keys() | BY_FACTS
    assert {rule.code for rule in machine.RULES} == MACHINE_CASES.keys()


def test_the_disk_needs_count_models_latents_and_what_is_replaced():
    """By the sizes in the model's headers; the run's folder and the caches may lie on different disks."""
    from engine.outlay import disk_bytes

    values = {"output_dir": str(Path.cwd() / "none" / "out"), "save_every_n_steps": 5, "save_last_n_steps": 5}
    made = plan_of(cache_latents_to_disk=True, flip_aug=True, mixed_precision="bf16", save_precision="fp16", **values)
    info = tiny_info()
    disk = disk_bytes(made, info)

    one = 2 * sum(info.parameters[part] for part in ("unet", "text_encoder", "vae")) + info.part_bytes.get("other", 0)
    assert (disk["one_model"], disk["num_models"]) == (one, 3)
    assert disk["latents"] == 7 * 2 * 4 * 8 * 8 * 2
    assert disk["peak"] == disk["total"] + one
    needs = {each.setting: each.num_bytes for each in disk_needs(made, disk, cache_dir=new_folder())}
    assert needs == {"output_dir": disk["peak"] - disk["latents"], "cache_dir": disk["latents"]}
