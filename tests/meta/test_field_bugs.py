"""Faults that are common in the field, each planted in the package: its test must turn red.

A row has the module, the source text, which must occur once, its faulty text, and the test. Rows
named "default: ..." give another value to a setting of the labs. tests/faults/test_field_bugs.py
plants every row; it takes a minute.
"""

from __future__ import annotations

import pytest

from tests.support.planting import ROOT, Fault, outcomes

TRANSFER, GRADIENTS, GANS = "unit/transfer", "unit/gradients", "unit/gans"
SHOWN = f"{GRADIENTS}/test_lab_defaults.py::test_"
RECIPE = f"{SHOWN}visualisation_without_settings_is_the_labs"
IN_NUMPY = f"{GRADIENTS}/test_visualisation.py::test_visualisation_of_a_linear_network_in_numpy"
HEADS = f"{TRANSFER}/test_heads.py::test_"
KEY = f"{TRANSFER}/test_store_key.py::test_"
FEATURES = f"{TRANSFER}/test_features.py::test_"
SVM = f"{TRANSFER}/test_svm.py::test_"
PRESETS = "unit/data/test_images.py::test_presets_of_the_labs_stretch_or_crop_as_pillow"
TEXTBOOK = f"{GANS}/test_training.py::test_three_steps_match_textbook_loop[dcgan-plain]"
SCORES = f"{GANS}/test_scores.py::test_"
LOSSES = f"{GANS}/test_losses.py::test_losses_match_formulas"
RUNS = f"{GANS}/test_runs.py::test_"
ALARM = f"{RUNS}equal_images_within_a_label_are_reported_in_row_and_log[False]"

FAULTS: dict[str, Fault] = {
    # images
    "BGR": Fault(
        "data.images", "array.permute(2, 0, 1)", "array.flip(2).permute(2, 0, 1)", PRESETS
    ),
    "nearest for bilinear": Fault(
        "data.images",
        '"bilinear": Image.Resampling.BILINEAR',
        '"bilinear": Image.Resampling.NEAREST',
        PRESETS,
    ),
    "centre crop one pixel off": Fault(
        "data.images", "round((width - side) / 2),", "(width - side) // 2,", PRESETS
    ),
    "default: short side": Fault("data.images", "resize: int = 256", "resize: int = 240", PRESETS),
    "normalisation without gradient": Fault(
        "data.images",
        'pixels = as_tensor(pixels, "pixels")',
        'pixels = as_tensor(pixels, "pixels").detach()',
        "unit/data/test_images.py::test_normalise_by_hand",
    ),
    "setting left out of the key": Fault(
        "data.images",
        'f"{shape}-{self.interpolation}-{numbers}{ending}"',
        'f"{shape}-{numbers}{ending}"',
        "unit/data/test_images.py::test_key_of_a_preprocess_changes_with_every_field",
    ),
    # features
    "normalisation missing": Fault(
        "transfer.features",
        "preprocess.normalise(pixels[:, :, rows]).to(dtype",
        "(pixels[:, :, rows].float() / 255).to(dtype",
        f"{FEATURES}streamed_batches_equal_single_images",
    ),
    "normalisation doubled": Fault(
        "transfer.features",
        "preprocess.normalise(pixels[:, :, rows]).to(dtype",
        "preprocess.normalise(preprocess.normalise(pixels[:, :, rows])).to(dtype",
        f"{FEATURES}streamed_batches_equal_single_images",
    ),
    "ReLU before the tap": Fault(
        "transfer.layer_outputs",
        "taps, lambda _tap, value: value.clone()",
        "taps, lambda _tap, value: value",
        f"{FEATURES}taps_before_inplace_relus_equal_a_float64_reference",
    ),
    "network in train mode": Fault(
        "transfer.inference",
        "return copy.deepcopy(module, memo).eval()",
        "return copy.deepcopy(module, memo)",
        f"{FEATURES}features_of_a_network_in_train_mode_are_those_of_eval_mode",
    ),
    **{
        f"last call in place of the first, of a {kind}": Fault(
            "transfer.layer_outputs",
            old,
            new,
            f"{TRANSFER}/test_feature_outputs.py::test_tap_of_a_module_that_runs_twice_is_its_first_call",
        )
        for kind, old, new in (
            ("path", "call: int = 0", "call: int = -1"),
            ("tuple", 'options.get("call", 0)', 'options.get("call", -1)'),
        )
    },
    "grids of a pyramid without weights": Fault(
        "transfer.features",
        ".flatten(1) / grid for grid",
        ".flatten(1) for grid",
        f"{FEATURES}pyramid_has_the_mean_roots_of_each_cell",
    ),
    "rows of a memory map out of order": Fault(
        "transfer.column_tiles",
        "tiles[tap].write(slice(row, end), value)",
        "tiles[tap].write(slice(row, end), value.flip(0))",
        f"{TRANSFER}/test_column_tiles.py::test_tiles_have_the_columns_of_streamed_features[True-1000000000-1]",
    ),
    "columns of a memory map out of order": Fault(
        "transfer.column_tiles",
        "self.parts.pop(0)",
        "self.parts.pop()",
        f"{TRANSFER}/test_column_tiles.py::test_tiles_have_the_columns_of_streamed_features[True-1000000000-1]",
    ),
    **{
        f"{name} left out of a store's key": Fault(
            "transfer.extraction",
            f'        "{name}": {value},\n',
            "",
            f"{KEY}changed_argument_makes_another_store",
        )
        for name, value in {
            "preprocess": "preprocess.key",
            "pool": "_pool_name(pool)",
            "batch_size": "batch_size",
        }.items()
    },
    # classifiers
    "L2 norm over the wrong axis": Fault(
        "transfer.gram",
        "cross / np.outer(test, train)",
        "cross / np.outer(np.ones_like(test), train)",
        f"{SVM}normalise_gram_equals_normalising_the_rows",
    ),
    "C inverted": Fault(
        "transfer.svm",
        "(C,) = _costs([C])",
        "(C,) = _costs([1 / C])",
        f"{SVM}weight_of_two_opposite_points_is_the_closed_form",
    ),
    "default: tolerance": Fault(
        "transfer.svm",
        "tol: float = 1e-4,\n    max_iter",
        "tol: float = 1e-1,\n    max_iter",
        f"{SVM}fit_without_settings_is_linear_svc_with_the_labs_cost_and_its_own_tolerance",
    ),
    "default: tolerance of the model": Fault(
        "transfer.svm",
        "tol: float = 1e-4,\n        C: float",
        "tol: float = 1e-1,\n        C: float",
        f"{SVM}fit_without_settings_is_linear_svc_with_the_labs_cost_and_its_own_tolerance",
    ),
    "default: cost": Fault(
        "transfer.svm",
        "Z_test: ArrayLike,\n    C: float = 1.0",
        "Z_test: ArrayLike,\n    C: float = 10.0",
        f"{SVM}fit_without_settings_is_linear_svc_with_the_labs_cost_and_its_own_tolerance",
    ),
    "seed of the folds ignored": Fault(
        "transfer.svm",
        "_splits(numbers, folds, repeats, seed)",
        "_splits(numbers, folds, repeats, 0)",
        f"{SVM}folds_are_scikit_learns_of_the_seed",
    ),
    "held-out rows in training": Fault(
        "transfer.svm",
        "fit(Z[train], numbers[train], Z[held]",
        "fit(Z, numbers, Z[held]",
        f"{SVM}choice_of_c_uses_held_out_training_rows",
    ),
    "scaling fitted on test images": Fault(
        "experiments.best_recipe",
        "means = gram[:, train].mean(1",
        "means = gram.mean(1",
        "meta/test_protocols.py::test_recipe_is_the_cosine_of_centred_features",
    ),
    "cosine schedule as a line": Fault(
        "transfer.heads",
        "(1 + math.cos(math.pi * epoch / config.epochs)) / 2",
        "(1 - epoch / config.epochs)",
        f"{HEADS}learning_rate_is_a_cosine_after_an_epoch_for_networks_and_constant_for_heads",
    ),
    "cosine schedule off by one": Fault(
        "transfer.heads",
        "rate(epoch + step / len(batches))",
        "rate(epoch + (step - 1) / len(batches))",
        f"{HEADS}learning_rate_is_a_cosine_after_an_epoch_for_networks_and_constant_for_heads",
    ),
    "weight decay lost": Fault(
        "transfer.heads",
        "weight_decay=config.weight_decay, fused",
        "weight_decay=0.0, fused",
        f"{HEADS}head_is_that_of_a_textbook_loop",
    ),
    "gradients added up": Fault(
        "transfer.heads", "optimizer.zero_grad()", "pass", f"{HEADS}head_is_that_of_a_textbook_loop"
    ),
    "validation split of half": Fault(
        "transfer.heads",
        "round(config.validation * count)",
        "round(0.5 * count)",
        f"{HEADS}validation_holds_out_a_fifth_of_each_class",
    ),
    "validation rows in training": Fault(
        "transfer.heads",
        "return torch.nonzero(~held).flatten(), torch",
        "return torch.arange(len(held)), torch",
        f"{HEADS}validation_holds_out_a_fifth_of_each_class",
    ),
    # input gradients
    "off-by-one class": Fault(
        "gradients.ascent",
        "copy_to_device(wanted, logits.device)",
        "copy_to_device((wanted + 1) % logits.shape[1], logits.device)",
        f"{GRADIENTS}/test_saliency.py::test_saliency_of_a_linear_network_is_its_absolute_weights",
    ),
    "source and target swapped": Fault(
        "gradients.fooling",
        "torch.stack([source, target], dim=1)",
        "torch.stack([target, source], dim=1)",
        f"{GRADIENTS}/test_fooling.py::test_report_is_the_networks_prediction",
    ),
    "any wrong class is fooled": Fault(
        "gradients.fooling",
        "last.argmax(1) == target",
        "last.argmax(1) != source",
        f"{SHOWN}image_of_a_third_class_is_not_fooled",
    ),
    "search stops at any wrong class": Fault(
        "gradients.fooling",
        "return logits.argmax(1) == target_logits(target, logits, rows)[0][:, 0]",
        "return logits.argmax(1) != 0",
        f"{SHOWN}image_of_a_third_class_is_not_fooled",
    ),
    "jitter not undone": Fault(
        "gradients.visualisation",
        "[image.roll(tuple(shift), (1, 2)) for",
        "[image + (image.roll(tuple(shift), (1, 2)) - image).detach() for",
        IN_NUMPY,
    ),
    "sign of the L2 term": Fault(
        "gradients.visualisation", "- weight[copy_to_device", "+ weight[copy_to_device", IN_NUMPY
    ),
    "blur at every step": Fault(
        "gradients.visualisation", "state.step % blur_every == 0 and", "", IN_NUMPY
    ),
    "seed of a visualisation ignored": Fault(
        "gradients.visualisation",
        "manual_seed(seed) for seed",
        "manual_seed(0) for seed",
        f"{GRADIENTS}/test_visualisation.py::test_a_seed_determines_the_image",
    ),
    **{
        f"default: {old}": Fault("gradients.visualisation", old, new, RECIPE)
        for old, new in {
            "l2: PerImage = 1e-3": "l2: PerImage = 1e-2",
            "lr: PerImage = 5.0": "lr: PerImage = 1.0",
            "Array = 200,": "Array = 100,",
            '"norm"] = "squared"': '"norm"] = "norm"',
            "unit_step: bool = False": "unit_step: bool = True",
            "jitter: int = 16": "jitter: int = 8",
            "blur_sigma: float = 0.5": "blur_sigma: float = 1.0",
            "blur_every: int = 10": "blur_every: int = 5",
        }.items()
    },
    "default: pixels of a visualisation": Fault(
        "gradients.visualisation",
        "size: int = 224",
        "size: int = 64",
        f"{SHOWN}visualisation_starts_from_noise_of_224_pixels",
    ),
    **{
        f"default: {old}": Fault(
            "gradients.fooling",
            old,
            new,
            f"{SHOWN}fooling_without_settings_takes_100_steps_of_length_1",
        )
        for old, new in {
            "lr: float = 1.0": "lr: float = 2.0",
            "steps: int = 100": "steps: int = 50",
        }.items()
    },
    **{
        f"default: {old}": Fault(
            "gradients.saliency",
            old,
            new,
            f"{SHOWN}smoothgrad_without_settings_is_16_samples_of_noise_0_15",
        )
        for old, new in {
            "noise: float = 0.15": "noise: float = 0.1",
            "samples: int = 16": "samples: int = 8",
        }.items()
    },
    **{
        f"default: blur of {name}": Fault(
            "gradients.saliency_scores",
            f"blur_sigma: float = {sigma}",
            f"blur_sigma: float = {sigma / 2}",
            f"{SHOWN}{name}_without_settings_{rest}",
        )
        for name, sigma, rest in (
            ("deletion", 10.0, "is_by_pixels_with_a_blur_of_10"),
            ("masks", 8.0, "have_a_blur_of_8"),
            ("pointing", 4.0, "has_a_blur_of_4"),
        )
    },
    # GANs
    "labels of the BCE swapped": Fault(
        "gans.losses",
        "torch.full_like(real, 1.0 - label_smoothing), torch.zeros_like(fake)",
        "torch.zeros_like(real), torch.full_like(fake, 1.0 - label_smoothing)",
        LOSSES,
    ),
    "detach forgotten": Fault(
        "gans.training",
        "shown(fake.detach(), 2 * update + 1)",
        "shown(fake, 2 * update + 1)",
        TEXTBOOK,
        also=(
            'loss.backward(inputs=optimizer.param_groups[0]["params"])',
            "loss.backward()",
        ),
    ),
    "D in eval mode": Fault(
        "gans.training",
        "self.discriminator, self.generator = nets\n",
        "self.discriminator, self.generator = nets[0].eval(), nets[1]\n",
        TEXTBOOK,
    ),
    **{
        f"label not fed to {net}": Fault(
            "gans.architecture",
            "self.y(one_hot)], dim=1)",
            f"self.y(one_hot * (not isinstance(self, {name})))], dim=1)",
            f"{GANS}/test_architecture.py::test_label_changes_image_and_logit",
        )
        for net, name in (("D", "Discriminator"), ("G", "Generator"))
    },
    "one-hot of the wrong width": Fault(
        "gans.architecture",
        '("y", a.classes))\n',
        '("y", a.classes + 1))\n',
        f"{GANS}/test_architecture.py::test_layer_weights_match_hand_computation",
    ),
    "seed of the weights ignored": Fault(
        "gans.architecture",
        "torch.default_generator.manual_seed(seed)",
        "torch.default_generator.manual_seed(0)",
        f"{GANS}/test_architecture.py::test_build_depends_on_seed_only_and_keeps_global_streams",
    ),
    "seed of the noise ignored": Fault(
        "gans.sampling",
        "SeedSequence((seed, *purpose))",
        "SeedSequence((0, *purpose))",
        f"{GANS}/test_training_loop.py::test_noise_is_normal_and_depends_on_seed_only",
    ),
    "wrong mode of BatchNorm": Fault(
        "gans.sampling",
        '.train(statistics == "batch")',
        '.train(statistics == "running")',
        f"{GANS}/test_sampling.py::test_batch_statistics_match_training_mode",
    ),
    "default: images of a batch's statistics": Fault(
        "gans.sampling",
        "batch: int = 500",
        "batch: int = 50",
        f"{GANS}/test_sampling.py::test_batch_statistics_are_of_500_images_by_default",
    ),
    "schedule off by one": Fault(
        "gans.training",
        "self.done >= milestone",
        "self.done > milestone",
        f"{GANS}/test_training.py::test_learning_rate_falls_by_ten_after_each_milestone",
    ),
    "checkpoint without a random state": Fault(
        "gans.training",
        'self.noise_stream.set_state(tensors["noise"])',
        "pass",
        f"{GANS}/test_training_resume.py::test_trainer_resumes_bit_for_bit[dcgan-plain]",
    ),
    "running mean trained and not scored": Fault(
        "gans.runs",
        "trainer.image_generator.state_dict()",
        "trainer.generator.state_dict()",
        f"{RUNS}running_mean_is_what_is_scored_and_shown",
    ),
    "labels not given to the alarm of a row and of the log": Fault(
        "gans.training_loop", ", labels=sampling.fixed_noise(config)[1])", ")", ALARM
    ),
    "Frechet distance without its root": Fault(
        "gans.scores",
        "np.sqrt(np.linalg.eigvalsh(root @ other @ root).clip(0))",
        "np.linalg.eigvalsh(root @ other @ root).clip(0)",
        f"{SCORES}frechet_of_scaled_rows_matches_closed_form",
    ),
    "precision and recall swapped": Fault(
        "gans.scores",
        "_mean(_balls(first, second, k)[0] > 0), _mean(_balls(second, first, k)[0] > 0)",
        "_mean(_balls(second, first, k)[0] > 0), _mean(_balls(first, second, k)[0] > 0)",
        f"{SCORES}neighbourhood_scores_match_hand_computation",
    ),
    "default: pixels of judged images": Fault(
        "gans.scores",
        "size: int = 96",
        "size: int = 64",
        f"{GANS}/test_image_features.py::test_images_are_resized_with_antialiasing",
    ),
    # records
    "package left out of the code's digest": Fault(
        "claims.provenance",
        '    "rdfia/**/*.py",\n',
        "",
        "unit/claims/test_provenance.py::test_code_hash_covers_every_module_and_table",
    ),
    "changed checkout called clean": Fault(
        "report.environment",
        "len(changed.splitlines())",
        "0",
        "unit/report/test_environment.py::test_changed_checkout_is_not_called_clean",
    ),
    "changed checkout named as its commit": Fault(
        "report.environment",
        'f"{commit}, with uncommitted files" if commit and changed else commit',
        "commit",
        "unit/report/test_environment.py::test_changed_checkout_is_not_called_clean",
    ),
}
ROOMS = {
    "transfer": ("data", "device", "models", "transfer", "experiments"),
    "gradients": ("gradients",),
    "gans": ("gans", "claims", "report"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_source_of_a_fault_occurs_once(name: str) -> None:
    fault = FAULTS[name]
    source = fault.path.read_text("utf-8")
    assert [source.count(old) for old, _ in fault.edits] == [1] * len(fault.edits), (
        f"{fault.path} has changed: update the fault"
    )
    file, _, function = fault.test.partition("[")[0].partition("::")
    assert f"def {function}(" in (ROOT / "tests" / file).read_text("utf-8"), (
        f"{fault.test} has been renamed: update the fault"
    )


def test_every_fault_is_in_one_room() -> None:
    rooms = [room for parts in ROOMS.values() for room in parts]
    unknown = {fault.module.partition(".")[0] for fault in FAULTS.values()} - set(rooms)
    assert unknown == set(), "add the room to ROOMS; faults/test_field_bugs.py skips it otherwise"
    assert len(set(rooms)) == len(rooms)


def test_fault_that_changes_nothing_is_a_survivor() -> None:
    """A module that cannot be imported, or a test that does not exist, is not a red test either."""
    harmless = Fault("gans.losses", '"""TME 9 and 10: the losses', '"""The losses', LOSSES)
    broken = harmless._replace(new='"""The losses""" )')
    absent = harmless._replace(test=f"{LOSSES}_of_another_name")
    control, (survived, *others) = outcomes([harmless, broken, absent])
    assert survived == "passed"
    assert all("exit status" in outcome for outcome in (control, *others))
    assert "SyntaxError" in others[0]
