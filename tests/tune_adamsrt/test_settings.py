"""Every shipped setting loads; every mistake in a file is one line: what must hold, what was found, where to edit."""

import pickle
from pathlib import Path

import pytest
import yaml

from tune_adamsrt import settings_file
from tune_adamsrt.ranges import Range
from tune_adamsrt.settings import known_settings, load_setting, override
from tune_adamsrt.settings_file import SettingError, shipped_folder

PUBLISHED_ROWS = ["resnet18-cifar10", "resnet20-cifar10", "vgg16-cifar10", "resnet18-cifar100", "vgg16-cifar100"]
PUBLISHED_ROWS += ["resnet18-svhn", "vgg16-svhn", "resnet18-imagenet"]
OPTIMIZERS = {"adam", "adams", "adamsrt", "adamw", "adamg", "sgd", "sgdmrt"}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Write a user's own file into the working directory and return the error that loading it gives."""
    monkeypatch.chdir(tmp_path)

    def error_of(text: str, name: str = "resnet20-digits.yaml") -> str:
        Path(name).write_text(text, encoding="utf-8")
        with pytest.raises(SettingError) as caught:
            load_setting(f"./{name}")
        message = str(caught.value)
        assert "\n" not in message and "pydantic" not in message
        return message

    return error_of


HEAD = "model: resnet20\ndataset: digits\n"
ADAM_SPACE = HEAD + "optimizers: {adam: {space: {%s}}}"


def test_there_is_a_setting_for_every_published_row_and_for_the_digits():
    assert known_settings() == sorted([*PUBLISHED_ROWS, "resnet20-digits"])


@pytest.mark.parametrize("name", known_settings())
def test_every_setting_loads_with_every_optimizer(name):
    setting = load_setting(name)
    assert setting.name == name
    assert set(setting.optimizers) == OPTIMIZERS
    assert pickle.loads(pickle.dumps(setting)) == setting


def test_the_published_protocol():
    setting = load_setting("resnet18-cifar100")
    assert (setting.epochs, setting.batch_size, setting.valid_split, setting.split_seed) == (405, 128, 0.05, 0)
    assert (setting.selection, setting.reduction_factor, setting.min_epochs) == ("best", 2, 15)
    assert load_setting("resnet18-imagenet").batch_size == 256
    assert load_setting("resnet20-digits").valid_split == 0.2
    assert sum(len(load_setting(name).published) for name in known_settings()) == 54


def test_a_published_point_may_lack_a_value_and_has_betas_as_a_tuple():
    assert load_setting("resnet20-cifar10").published["adamw"] == {"lr": 0.001, "betas": (0.9, 0.99)}


def test_a_setting_cannot_be_changed():
    setting = load_setting("resnet20-digits")
    with pytest.raises(ValueError, match="frozen"):
        setting.epochs = 1
    for change in (lambda: setting.optimizers.pop("adam"), lambda: setting.published.update(adam={})):
        with pytest.raises(TypeError, match="must not be changed in place; use override"):
            change()


def test_override_validates_again_and_lowers_min_epochs():
    setting = load_setting("resnet18-cifar100")
    changed = override(setting, epochs=3, trials=None)
    assert (changed.epochs, changed.min_epochs, changed.trials) == (3, 3, setting.trials)
    assert override(setting, epochs=100).min_epochs == setting.min_epochs
    assert setting.epochs == 405
    with pytest.raises(SettingError, match=r"^epochs must be >= 1, got 0; choose another value$"):
        override(setting, epochs=0)
    with pytest.raises(SettingError, match=r"^unknown key 'epoch'; did you mean 'epochs'\?"):
        override(setting, epoch=3)


def test_mappings_merge_and_a_range_replaces_a_range(tmp_path):
    path = tmp_path / "resnet20-digits.yaml"
    path.write_text(ADAM_SPACE % "lr: {choice: [1e-3, 0.01]}, beta2: {fixed: 0.9}")
    space = load_setting(str(path)).optimizers["adam"].space
    assert space["lr"] == Range.model_validate({"choice": [0.001, 0.01]})
    assert space["beta2"].as_yaml() == {"fixed": 0.9} and "one_minus_beta2" not in space
    assert space["beta1"] == load_setting("resnet20-digits").optimizers["adam"].space["beta1"]
    assert load_setting(str(path)).optimizers["sgd"] == load_setting("resnet20-digits").optimizers["sgd"]


@pytest.mark.parametrize("text", ["1e-4", "1E-4", "1.0e-4", "0.0001", ".1e-3", "1.e-4"])
def test_numbers_may_be_written_without_a_dot(text, tmp_path):
    path = tmp_path / "resnet20-digits.yaml"
    path.write_text(ADAM_SPACE % f"lr: {{log_uniform: [{text}, 1]}}")
    assert load_setting(str(path)).optimizers["adam"].space["lr"].low == 1e-4


def test_the_shipped_folder_of_a_wheel_comes_first(tmp_path, monkeypatch):
    monkeypatch.setattr(settings_file, "__file__", str(tmp_path / "tune_adamsrt" / "settings_file.py"))
    assert shipped_folder() == tmp_path / "search_spaces"
    (tmp_path / "tune_adamsrt" / "search_spaces").mkdir(parents=True)
    assert shipped_folder() == tmp_path / "tune_adamsrt" / "search_spaces"


def test_an_unknown_setting_names_the_closest():
    with pytest.raises(SettingError, match=r"^unknown setting 'resnet18-cifar'; did you mean 'resnet18-cifar10\w*'\?"):
        load_setting("resnet18-cifar")


EDIT = "; edit resnet20-digits.yaml"
RANGE_FORMS = (
    "{uniform: [low, high]}, {log_uniform: [low, high]}, {zero_or_log_uniform: [low, high]}, "
    "{choice: [a, b, ...]}, {fixed: a}"
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("epochs: 0", "epochs must be >= 1, got 0" + EDIT),
        ("epochs: 1.5", "epochs must be a valid integer, got 1.5" + EDIT),
        ("epochs: true", "epochs must be a valid integer, got True" + EDIT),
        ("epochs: 1", "min_epochs must be <= epochs (1), got 15" + EDIT + " (the value comes from _defaults.yaml)"),
        ("trials: 0", "trials must be >= 1, got 0" + EDIT),
        ("batch_size: '64'", "batch_size must be a valid integer, got '64'" + EDIT),
        ("valid_split: 1.0", "valid_split must be < 1, got 1.0" + EDIT),
        ("valid_split: .nan", "valid_split must be a finite number, got nan" + EDIT),
        ("selection: first", "selection must be 'best' or 'last', got 'first'" + EDIT),
        ("reduction_factor: 1", "reduction_factor must be >= 2, got 1" + EDIT),
        ("cpus_per_trial: 0", "cpus_per_trial must be > 0, got 0" + EDIT),
        ("gpus_per_trial: -1", "gpus_per_trial must be >= 0, got -1" + EDIT),
        (
            "gpus_per_trial: 1.5",
            "gpus_per_trial must be a whole number above 1 (fractions share one GPU), got 1.5" + EDIT,
        ),
        ("trials: 0\nbatch_size: 0", "trials must be >= 1, got 0 (and 1 more to correct)" + EDIT),
        ("optimizers: 3", "optimizers must be a valid mapping, got 3" + EDIT),
        (
            "optimizers: {adamsrtt: {space: {}, grid: {}}}",
            "optimizers: unknown optimizer 'adamsrtt'; did you mean 'adamsrt'?",
        ),
        ("optimizers: {adam: {spaces: {}}}", "optimizers.adam: unknown key 'spaces'; did you mean 'space'?"),
        ("optimizers: {adam: {grid: {lr: []}}}", "optimizers.adam.grid.lr must have at least 1 item"),
        ("optimizers: {adam: {grid: {beta2: [1]}}}", "optimizers.adam.grid.beta2 must be in [0, 1), got 1.0" + EDIT),
        ("published: {adam: {lr: -1}}", "published.adam.lr must be > 0, got -1" + EDIT),
        (
            "published: {adam: {betas: 0.9}}",
            "published.adam.betas must be two numbers [beta1, beta2], got 0.9" + EDIT,
        ),
        ("published: {sgd: {betas: [0.9, 0.99]}}", "published.sgd: unknown parameter 'betas'; known: lr, momentum"),
    ],
)
def test_wrong_values_give_one_line(text, expected, write):
    assert write(HEAD + text).startswith(expected)


@pytest.mark.parametrize(
    ("space", "expected"),
    [
        ("lr: 0.1", f"lr must be one of {RANGE_FORMS}, got 0.1" + EDIT),
        ("lr: {log: [1, 2]}", "lr: unknown kind of range 'log'; "),
        ("lr: {uniform: [a, 2]}", "lr must be {uniform: [low, high]} with finite numbers, got ['a', 2]" + EDIT),
        ("lr: {uniform: [1, .inf]}", "lr must be {uniform: [low, high]} with finite numbers, got [1, inf]" + EDIT),
        ("lr: {uniform: [2, 1]}", "lr must be {uniform: [low, high]} with low < high, got [2, 1]" + EDIT),
        ("lr: {uniform: [1, 1]}", "lr must be {uniform: [low, high]} with low < high, got [1, 1]" + EDIT),
        ("lr: {log_uniform: [1]}", "lr must be {log_uniform: [low, high]} with low < high, got [1]" + EDIT),
        ("lr: {log_uniform: [0, 1]}", "lr must have low > 0 on a log scale, got [0, 1]" + EDIT),
        (
            "weight_decay: {zero_or_log_uniform: [0, 1]}",
            "weight_decay must have low > 0 on a log scale, got [0, 1]" + EDIT,
        ),
        ("lr: {choice: []}", "lr must be a choice of one or more different numbers, got []" + EDIT),
        ("lr: {choice: [1, 1]}", "lr must be a choice of one or more different numbers, got [1, 1]" + EDIT),
        ("lr: {fixed: 0}", "lr must be > 0, got 0.0" + EDIT),
        ("weight_decay: {uniform: [-1, 1]}", "weight_decay must be >= 0, got -1.0" + EDIT),
        ("beta2: {uniform: [0.9, 1]}", "beta2 must be in [0, 1), got 1.0" + EDIT),
        ("one_minus_beta2: {uniform: [0, 1]}", "one_minus_beta2 must be in [1e-9, 1], got 0.0" + EDIT),
        ("momentum: {fixed: 0.9}", "unknown parameter 'momentum'; known: lr, beta1, beta2, weight_decay, "),
    ],
)
def test_wrong_ranges_give_one_line(space, expected, write):
    message = write(ADAM_SPACE % space).removeprefix("optimizers.adam.space")
    assert message[1:].lstrip().startswith(expected)


def test_a_parameter_stands_once_and_none_is_missing(write):
    both = "beta1: {fixed: 0.9}, one_minus_beta1: {fixed: 0.1}"
    assert write(ADAM_SPACE % both) == "optimizers.adam.space must hold beta1 once, got it 2 times" + EDIT


def test_names_that_do_not_exist(write):
    assert write("model: resnet21\ndataset: digits").startswith("model: unknown model 'resnet21'; did you mean")
    assert write("model: resnet20\ndataset: digit").startswith(
        "dataset: unknown dataset 'digit'; did you mean 'digits'?"
    )
    assert write("dataset: digits") == "model must be given, got nothing" + EDIT
    assert write(HEAD + "epoch: 3").startswith(
        "unknown key 'epoch'; did you mean 'epochs'? known: model, dataset, epochs"
    )


def test_the_file_is_named_after_its_model_and_dataset(write):
    expected = "a.yaml must be named resnet20-digits.yaml after its model and dataset; rename it or edit these"
    assert write(HEAD, name="a.yaml") == expected


def test_files_that_are_no_yaml(write, tmp_path):
    assert write("model: [a\nb: c").startswith("resnet20-digits.yaml, line 2 must be valid YAML, got: ")
    repeated = "resnet20-digits.yaml, line 3 must be valid YAML, got: the key model stands twice; correct the line"
    assert write(HEAD + "model: vgg16") == repeated
    assert write("") == "resnet20-digits.yaml must hold `key: value` lines, got NoneType; see _defaults.yaml"
    (tmp_path / "b.yaml").write_bytes(b"model: \xff")
    with pytest.raises(SettingError, match=r"^b.yaml must be UTF-8 text, got a wrong byte at 7; save it as UTF-8$"):
        load_setting("b.yaml")
    with pytest.raises(SettingError, match=r"^c.yaml must be a readable file, got: No such file or directory"):
        load_setting("c.yaml")


def test_the_shipped_files_hold_no_repeated_defaults():
    """A setting's file holds only what differs: no value equals the default that it overrides."""
    folder = shipped_folder()
    defaults = yaml.safe_load((folder / "_defaults.yaml").read_text())
    for name in known_settings():
        own = yaml.safe_load((folder / f"{name}.yaml").read_text())
        assert not [key for key in own if defaults.get(key) == own[key]], name
