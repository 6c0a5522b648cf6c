"""Hypernetworks: their files, what they do to a UNet, and runs that train them."""

import pickle
import re
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from engine.cli import main
from engine.errors import EngineError, ProblemsError
from engine.models.hypernetwork import Attached, Hypernetwork, StrongHypernetwork, widths_of
from engine.models.hypernetwork_file import HypernetworkFile, Structure, open_hypernetwork, write_hypernetwork
from engine.models.sd import StableDiffusion
from engine.models.verify import verify
from tests.engine.run_support import go, loaded_run, new_folder, same, tiny_model

WIDTH = 16  # Of all attention in the tiny model, its text states included.
SETTINGS = {"train_hypernetwork": True, "save_model_as": "ckpt", "learning_rate": 1e-2}


# ---- The web UI's side, written anew from its module order; it shares nothing with ours.


class WebModule(nn.Module):
    """What the web UI builds from a file's plain values, to be loaded strictly."""

    def __init__(self, dim, state_dict, data):
        super().__init__()
        structure = data.get("layer_structure", [1, 2, 1])
        activations = {"linear": nn.Identity, "relu": nn.ReLU, "swish": nn.Hardswish, "tanh": nn.Tanh}
        function, rates = data.get("activation_func"), data.get("dropout_structure")
        modules = []
        for i in range(len(structure) - 1):
            modules.append(nn.Linear(int(dim * structure[i]), int(dim * structure[i + 1])))
            is_last = i >= len(structure) - 2
            if function not in (None, "linear") and not (is_last and not data.get("activate_output", True)):
                modules.append(activations[function]())
            if data.get("is_layer_norm", False):
                modules.append(nn.LayerNorm(int(dim * structure[i + 1])))
            if rates is not None and rates[i + 1] > 0:
                modules.append(nn.Dropout(p=rates[i + 1]))
        self.linear = nn.Sequential(*modules)
        self.load_state_dict(state_dict)
        self.eval()

    def forward(self, x, multiplier=1.0):
        return x + self.linear(x) * multiplier


class RestrictedUnpickler(pickle.Unpickler):
    """As the web UI reads files: named tensors and plain values, nothing else."""

    def persistent_load(self, saved_id):
        assert saved_id[0] == "storage"
        return saved_id[2]

    def find_class(self, module, name):
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_parameter"):
            return lambda *_: "tensor"
        if module == "torch" and name in ("FloatStorage", "HalfStorage", "LongStorage", "BFloat16Storage"):
            return getattr(torch, name)
        raise AssertionError(f"{module}.{name}")


def load_as_web_ui(path):
    """Return {width: (keys, values)} modules and the plain values."""
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            assert re.fullmatch(r"([^/]+)/((data/\d+)|version|(data\.pkl))", name)  # Its oldest, strictest check.
        with archive.open(next(name for name in archive.namelist() if name.endswith("/data.pkl"))) as file:
            RestrictedUnpickler(file).load()
    data = torch.load(path, weights_only=True)
    layers = {
        size: (WebModule(size, pair[0], data), WebModule(size, pair[1], data))
        for size, pair in data.items()
        if type(size) is int
    }
    return layers, data


def web_ui_output(unet, chain, inputs):
    """Return the UNet's output with its attention computed as the web UI does, hypernetworks on k and v in turn."""
    latents, timesteps, states = inputs

    def processor(attn, hidden_states, encoder_hidden_states=None, attention_mask=None, **_):
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        context_k = context_v = context
        for layers, strength in chain:
            pair = layers.get(context_k.shape[2])
            if pair is not None:
                context_k, context_v = pair[0](context_k, strength), pair[1](context_v, strength)
        q, k, v = (
            attn.head_to_batch_dim(t) for t in (attn.to_q(hidden_states), attn.to_k(context_k), attn.to_v(context_v))
        )
        out = (q @ k.transpose(1, 2) * attn.scale).softmax(-1) @ v
        return attn.to_out[0](attn.batch_to_head_dim(out))

    unet.set_attn_processor(processor)
    return unet(latents, timesteps, states, return_dict=False)[0]


# ---- A UNet, and hypernetworks strong enough to be seen


@pytest.fixture
def unet():
    return StableDiffusion.load(str(tiny_model())).unet.eval().requires_grad_(requires_grad=False)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(2, 4, 8, 16, generator=generator),
        torch.tensor([10, 700]),
        torch.randn(2, 77, 16, generator=generator),
    )


def strong(structure, seed=0, widths=(WIDTH,)):
    """Return a hypernetwork with weights of ordinary size."""
    network = Hypernetwork(structure, widths).requires_grad_(requires_grad=False).eval()
    generator = torch.Generator().manual_seed(seed)
    for parameter in network.parameters():
        parameter.normal_(0, 0.3, generator=generator)
    return network


def saved(network, path):
    write_hypernetwork(HypernetworkFile(structure=network.structure, layers=network.tensors(), name=path.stem), path)
    return path


STRUCTURES = [
    Structure(),
    Structure(layers=(1.0, 2.0, 2.0, 1.0), activation="relu", layer_norm=True, dropout=(0.0, 0.3, 0.3, 0.0)),
    Structure(layers=(1.0, 1.5, 1.0), activation="swish", activate_output=True),
    Structure(layers=(1.0, 4.0, 1.0), activation="tanh", dropout=(0.0, 0.5, 0.0)),
]


@pytest.mark.parametrize("structure", STRUCTURES)
def test_the_web_ui_loads_our_file_strictly_and_gives_our_output(tmp_path, unet, inputs, structure):
    """The same tensors at the same places of the same modules: a UNet's output agrees to 1e-5."""
    network = strong(structure)
    plain = unet(*inputs, return_dict=False)[0]
    with Attached(unet, trained=None, drawn=[StrongHypernetwork(network=network, strength=0.7)]).drawing():
        ours = unet(*inputs, return_dict=False)[0]
    layers, data = load_as_web_ui(saved(network, tmp_path / "style.pt"))
    theirs = web_ui_output(StableDiffusion.load(str(tiny_model())).unet.eval(), [(layers, 0.7)], inputs)

    assert (ours - plain).abs().max() > 1e-3
    assert (ours - theirs).abs().max() < 1e-5
    assert data["name"] == "style"
    assert all(
        isinstance(value, str | int | bool | list | None) for name, value in data.items() if isinstance(name, str)
    )


def test_several_work_on_what_the_one_before_has_made(tmp_path, unet, inputs):
    """Keys and values go through the chain apart, each at its strength."""
    chain = [(strong(Structure(), seed=1), 0.5), (strong(STRUCTURES[1], seed=2), 1.2)]
    attached = Attached(unet, trained=None, drawn=[StrongHypernetwork(network=n, strength=s) for n, s in chain])
    with attached.drawing():
        ours = unet(*inputs, return_dict=False)[0]
    loaded = [(load_as_web_ui(saved(network, tmp_path / f"{s}.pt"))[0], s) for network, s in chain]
    theirs = web_ui_output(StableDiffusion.load(str(tiny_model())).unet.eval(), loaded, inputs)

    assert (ours - theirs).abs().max() < 1e-5


@pytest.mark.parametrize("names", ["linear.{0}.{1}", "linear{2}.{1}"])
def test_a_file_of_novelai_goes_in_and_comes_out(tmp_path, names):
    """Two linear layers and no plain values, also under the names of before: the same values come back."""
    torch.manual_seed(0)
    shapes = {0: (32, 16), 1: (16, 32)}

    def table():
        return {
            names.format(n, kind, n + 1): torch.randn(shape if kind == "weight" else shape[:1])
            for n, shape in shapes.items()
            for kind in ("weight", "bias")
        }

    pair = [table(), table()]
    torch.save({16: pair}, tmp_path / "nai.pt")

    network = Hypernetwork.loaded(open_hypernetwork(tmp_path / "nai.pt"))
    again = open_hypernetwork(saved(network, tmp_path / "again.pt")).layers[16]

    assert network.structure.layers == (1, 2, 1)
    assert network.structure.activation == "linear"
    for before, after in zip(pair, again, strict=True):
        assert all(
            torch.equal(t, after[f"linear.{n}.{kind}"].tensor())
            for (n, kind), t in zip(
                [(0, "weight"), (0, "bias"), (1, "weight"), (1, "bias")], before.values(), strict=True
            )
        )


def test_files_that_are_no_hypernetwork_are_refused(tmp_path):
    """Whatever is odd about them is named, in one sentence."""
    good = {
        f"linear.{n}.{k}": torch.zeros(s)
        for n, k, s in [(0, "weight", (32, 16)), (0, "bias", (32,)), (1, "weight", (16, 32)), (1, "bias", (16,))]
    }
    block = torch.zeros(32 * 16)
    shared = {name: block[: tensor.numel()].view(tensor.shape) for name, tensor in good.items()}
    cases = {
        "no layers": {"step": 3},
        "no pair": {16: [good]},
        "not what its structure": {16: [good, {**good, "linear.1.bias": torch.zeros(3)}]},
        "layer structure is": {16: [good, good], "layer_structure": [1, 2, 3]},
        "activation is": {16: [good, good], "activation_func": "import os"},
        "dropout": {16: [good, good], "dropout_structure": [0, 2, 0]},
        "width of": {0: [{}, {}], "layer_structure": [1, 1]},
        "no layers for any": {True: [good, good]},
        "no list of numbers": {16: [good, good], "layer_structure": [1, 10**30, 1]},
        "no room": {16: [good, good], "layer_structure": [1, 0.01, 1]},
        "values are of the type I64": {16: [{name: tensor.long() for name, tensor in good.items()}, good]},
        "more than the file has": {16: [shared, shared]},
        "number that no checkpoint needs": {16: [good, good], "step": 10**60},
    }
    for words, data in cases.items():
        torch.save(data, tmp_path / "odd.pt")
        with pytest.raises(EngineError, match=words):
            open_hypernetwork(tmp_path / "odd.pt")
    with pytest.raises(EngineError, match="can't be read"):
        open_hypernetwork(tmp_path / "missing.pt")


def test_what_refers_to_itself_many_times_is_read_once(tmp_path):
    """A file of a kilobyte that would fill any memory when written out."""
    nested = []
    for _ in range(60):
        nested = [nested, nested]
    torch.save({16: nested, "name": nested, "layer_structure": nested, "activation_func": nested}, tmp_path / "dag.pt")
    with pytest.raises(EngineError, match="no hypernetwork"):
        open_hypernetwork(tmp_path / "dag.pt")
    nested.append(nested)
    torch.save({16: nested}, tmp_path / "loop.pt")
    with pytest.raises(EngineError, match="nested without end"):
        open_hypernetwork(tmp_path / "loop.pt")


def test_a_new_one_changes_next_to_nothing_and_every_width_gets_its_networks(unet, inputs):
    """Weights are normal with deviation 0.01, the same for the same seed."""
    assert widths_of(unet) == (WIDTH,)
    network = Hypernetwork.new(Structure(), widths_of(unet), seed=3)
    again = Hypernetwork.new(Structure(), widths_of(unet), seed=3)
    assert same(network.state_dict(), again.state_dict())
    assert 0.008 < network.branches(WIDTH)[0].linear[0].weight.std() < 0.012
    plain = unet(*inputs, return_dict=False)[0]
    Attached(unet, trained=network)
    assert (unet(*inputs, return_dict=False)[0] - plain).abs().max() < 0.01


# ---- Runs


@pytest.fixture(scope="module")
def trained():
    """Six steps of a run that trains a hypernetwork with states on the way."""
    return go(
        new_folder(),
        **SETTINGS,
        max_train_steps=6,
        save_every_n_steps=3,
        save_state=True,
        hypernetwork_activation="relu",
        hypernetwork_dropout=0.2,
    )


def test_a_run_trains_the_hypernetwork_alone(trained):
    """The run says so, saves a .pt that says what it is, and verify certifies it."""
    assert trained.code == 0
    assert trained.of("started")[0].trains == ("hypernetwork",)
    _, data = load_as_web_ui(trained.folder / "last.pt")
    assert (data["step"], data["activation_func"], data["dropout_structure"]) == (6, "relu", [0, 0.2, 0])
    assert data["sd_checkpoint_name"] == "model"
    report = verify(trained.folder / "last.pt")
    assert report.ok
    assert report.family == "hypernetwork"
    assert report.parameters == {"hypernetwork": 2 * (2 * WIDTH * 2 * WIDTH + 3 * WIDTH)}


def test_what_is_trained_learns_and_the_model_does_not():
    """The loss on the pictures held out falls, measured with the same noise each time."""
    run = go(new_folder(), **SETTINGS, max_train_steps=40, validation_split=0.3, validate_every_n_steps=40)
    first, last = run.of("validated")
    assert last.loss < first.loss * 0.97


def test_a_run_goes_on_bit_for_bit(trained):
    """From the state in the middle, dropout included, to the same file."""
    resumed = go(
        new_folder(),
        **SETTINGS,
        max_train_steps=6,
        hypernetwork_activation="relu",
        hypernetwork_dropout=0.2,
        resume=str(next((trained.folder / "state").glob("*3"))),
    )
    assert resumed.losses == trained.losses[3:]
    ends = [torch.load(run.folder / "last.pt", weights_only=True)[WIDTH] for run in (trained, resumed)]
    assert all(same(*pair) for pair in zip(*ends, strict=True))


@pytest.mark.parametrize("setting", ["hypernetwork_layer_structure", "hypernetwork_sizes"])
def test_another_structure_does_not_fit_the_state(trained, setting):
    """It is refused by name before anything is loaded."""
    state = str(next((trained.folder / "state").glob("*3")))
    changed = {"hypernetwork_layer_structure": "1,3,1", "hypernetwork_sizes": [WIDTH]}[setting]
    with pytest.raises(ProblemsError, match=setting):
        go(
            new_folder(),
            **SETTINGS,
            hypernetwork_activation="relu",
            hypernetwork_dropout=0.2,
            resume=state,
            **{setting: changed},
        )


def test_training_goes_on_from_a_file(trained):
    """Its structure counts, and its steps are counted on."""
    run = go(
        new_folder(),
        **{**SETTINGS, "save_model_as": "safetensors"},
        hypernetwork_weights=str(trained.folder / "last.pt"),
        max_train_steps=2,
    )
    file = open_hypernetwork(run.folder / "last.safetensors")
    assert (file.step, file.structure.activation, file.base) == (8, "relu", "model")
    assert file.metadata["modelspec.architecture"] == "stable-diffusion-v1/hypernetwork"
    assert verify(run.folder / "last.safetensors").ok


def test_a_state_of_another_file_is_refused(trained, tmp_path):
    """Its activation would not show in the names of the weights."""
    other = saved(strong(Structure(activation="tanh")), tmp_path / "tanh.pt")
    weights = {"hypernetwork_weights": str(trained.folder / "last.pt")}
    first = go(new_folder(), **SETTINGS, **weights, max_train_steps=2, save_every_n_steps=1, save_state=True)
    state = str(first.folder / "state" / "step-00000001")
    again = go(new_folder(), **SETTINGS, **weights, max_train_steps=2, resume=state)
    assert again.losses == first.losses[1:]
    with pytest.raises(EngineError, match="set hypernetwork_weights as before"):
        go(new_folder(), **SETTINGS, hypernetwork_weights=str(other), max_train_steps=2, resume=state)


def test_widths_that_the_model_lacks_are_said_and_kept(tmp_path):
    """A file of another family's widths beside the model's own trains what fits, and is saved whole."""
    source = saved(strong(Structure(), widths=(WIDTH, 24)), tmp_path / "wide.pt")
    run = go(new_folder(), **SETTINGS, hypernetwork_weights=str(source), max_train_steps=1, save_state=True)
    before, after = (torch.load(path, weights_only=True) for path in (source, run.folder / "last.pt"))

    assert [event.message for event in run.of("warning") if "width" in event.message]
    assert same(before[24][0], after[24][0])
    assert not same(before[WIDTH][0], after[WIDTH][0])


def test_dropout_is_of_training_only():
    """With it steps differ; the loss on pictures held out is the same for the same weights."""
    values = {**SETTINGS, "learning_rate": 1e-9, "max_train_steps": 2, "validation_split": 0.3}
    with_dropout, without = (go(new_folder(), **values, hypernetwork_dropout=rate) for rate in (0.5, 0.0))
    assert with_dropout.losses != without.losses
    assert with_dropout.of("validated")[0].loss == without.of("validated")[0].loss


def test_layer_norm_and_sizes_reach_the_network():
    """What the settings ask for is what is saved; a width that the model lacks is refused."""
    run = go(
        new_folder(),
        **SETTINGS,
        hypernetwork_layer_norm=True,
        hypernetwork_layer_structure=[1, 0.5, 1],
        hypernetwork_sizes="16",
        max_train_steps=1,
    )
    file = open_hypernetwork(run.folder / "last.pt")
    assert (file.structure.layer_norm, file.structure.layers, list(file.layers)) == (True, (1, 0.5, 1), [16])
    with pytest.raises(ProblemsError, match="no width 768; it has 16"):
        go(new_folder(), **SETTINGS, hypernetwork_sizes=[768])


def test_samples_are_drawn_with_what_is_named(tmp_path, trained):
    """Each of these pictures differs: without, with one at two strengths, and the trained one on top."""
    (tmp_path / "prompts.txt").write_text("a cat --w 64 --h 64 --s 2 --d 1")
    file = str(saved(strong(Structure()), tmp_path / "strong.pt"))
    common = {"sample_prompts": str(tmp_path / "prompts.txt"), "sample_at_first": True, "max_train_steps": 1}
    weights = {**SETTINGS, "hypernetwork_weights": file}
    runs = [
        go(new_folder(), **common),
        go(new_folder(), **common, hypernetworks=[file]),
        go(new_folder(), **common, hypernetworks=[f"{file}:0.3"]),
        go(new_folder(), **common, **weights),
        go(new_folder(), **common, **weights, hypernetwork_strength=0.3),
        go(new_folder(), **common, **SETTINGS, hypernetworks=[f"{file}:0.0"], hypernetwork_strength=0.0),
    ]
    plain, listed, weak, own, own_weak, none = ((run.folder / run.of("sampled")[0].path).read_bytes() for run in runs)
    assert listed == own
    assert weak == own_weak
    assert none == plain
    assert len({plain, listed, weak}) == 3
    # The run itself is not touched by what its samples are drawn with.
    assert runs[0].losses == runs[1].losses


@pytest.mark.parametrize("setting", ["gradient_checkpointing", "mem_eff_attn"])
def test_however_attention_is_computed_it_trains_alike(setting):
    """Losses and gradients agree with those of the plain run to rounding."""
    plain, other = (go(new_folder(), **SETTINGS, max_train_steps=2, **chosen) for chosen in ({}, {setting: True}))
    assert other.losses == pytest.approx(plain.losses, rel=1e-5)
    assert [s.grad_norm for s in other.steps] == pytest.approx([s.grad_norm for s in plain.steps], rel=1e-4)


def test_half_precision_keeps_the_hypernetwork_in_float32():
    """The frozen model computes in bf16, its networks are trained whole, and their average can be kept."""
    run = go(new_folder(), **SETTINGS, mixed_precision="bf16", use_ema=True, max_train_steps=2, save_state=True)
    data = torch.load(run.folder / "last.pt", weights_only=True)[WIDTH]
    assert all(tensor.dtype == torch.float32 for tensor in data[0].values())
    state = next((run.folder / "state").glob("step-*"))
    assert {path.name for path in state.glob("*.safetensors")} >= {"hypernetwork.safetensors", "ema.safetensors"}
    assert not (state / "unet.safetensors").exists()


def test_convert_changes_the_kind_of_file_and_keeps_the_values(tmp_path, trained, capsys):
    """Both ways, and in half precision."""
    source, middle, end = trained.folder / "last.pt", tmp_path / "a.safetensors", tmp_path / "b.pt"
    assert main(["convert", str(source), str(middle)]) == 0
    assert main(["convert", str(middle), str(end), "--save_precision", "fp16"]) == 0
    before, after = (torch.load(path, weights_only=True) for path in (source, end))
    assert all(torch.equal(before[WIDTH][0][n].half(), after[WIDTH][0][n]) for n in before[WIDTH][0])
    assert len(load_file(middle)) == 8
    assert before["step"] == after["step"]
    assert main(["convert", str(source), str(tmp_path / "c")]) == 2
    assert ".pt or a .safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"train_text_encoder": True}, "text encoder stays as it is"),
        ({"save_model_as": "diffusers"}, "single file"),
        ({"hypernetwork_weights": "/nowhere/x.pt"}, "can't be read"),
        ({"hypernetworks": ["/nowhere/x.pt:0.5"], "sample_prompts": None}, "can't be read"),
        ({"hypernetwork_layer_structure": "1,0.01,1"}, "no room in a width of 16"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_start(values, words):
    """In one sentence each, with nothing written."""
    folder = new_folder()
    with pytest.raises(ProblemsError, match=words):
        go(folder, **{**SETTINGS, **values})
    assert not (folder / "out").exists()


def test_settings_are_checked_as_they_are_read():
    """Layers begin and end with 1, and paths in a list are resolved like any other."""
    with pytest.raises(ProblemsError, match="begin and end with 1"):
        loaded_run(new_folder(), hypernetwork_layer_structure="1,2")
    folder = new_folder()
    settings = loaded_run(folder, hypernetworks=["a.pt:0.5", "b.pt"]).settings
    assert settings.sampling.hypernetworks == (f"{folder.resolve()}/a.pt:0.5", f"{folder.resolve()}/b.pt")
