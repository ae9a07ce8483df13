"""Plans: what fits and what does not, bytes by kind against real arrays, and the 1.3-billion recipe's own compiled step."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from alibi_jax.config import (
    Config,
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimizerConfig,
    TrainConfig,
    load_config,
    replace,
    to_json,
)
from alibi_jax.errors import ConfigError
from alibi_jax.model.flops import peak_flops, train_flops_per_token
from alibi_jax.model.remat import REMAT_SAVES
from alibi_jax.plan import bounds
from alibi_jax.plan.bounds import Attention, Batch, attention_of, bounds_of, train_flops
from alibi_jax.plan.chips import CHIPS, chip_of
from alibi_jax.plan.collectives import collectives
from alibi_jax.plan.compile import Compiled, Overflow, abstract_state, compile_step, compiled, effort, overflow_of
from alibi_jax.plan.hlo import Program, shapes
from alibi_jax.plan.memory import Memory, activation_bytes, advice, cheaper_remat
from alibi_jax.plan.plan import plan, with_vocabulary
from alibi_jax.plan.report import json_text, record, search_text, text
from alibi_jax.plan.search import candidates, factorisations, search
from alibi_jax.plan.topology import find_topology, mesh_on
from alibi_jax.run import commands
from alibi_jax.run.parse import main
from alibi_jax.sharding import check_mesh, make_mesh
from alibi_jax.train import programs
from experiments import pods

GIB = 2**30


def small(mesh: MeshConfig, model: dict | None = None, **train) -> Config:
    sizes = {"num_layers": 2, "width": 256, "num_heads": 4, "mlp_width": 512, "vocab_size": 512}
    kinds = {
        "scan_layers": True,
        "compute_dtype": "bfloat16",
        "attention": "reference",
    }  # kernels take longer to compile
    return Config(
        model=ModelConfig(**(sizes | kinds | (model or {}))),
        optimizer=OptimizerConfig(warmup_steps=1),
        train=TrainConfig(**({"train_length": 256, "batch_size": 16, "steps": 4} | train)),
        mesh=mesh,
    )


@pytest.fixture(scope="module")
def on_cpus():
    config = small(MeshConfig(data=2, fsdp=4))
    return config, plan(config, find_topology("cpu:8"), lengths=(64, 512))


@pytest.fixture(scope="module")
def on_tpus():
    config = small(MeshConfig(data=1, fsdp=4))
    return config, plan(config, find_topology("v5e:2x2"))


@pytest.mark.versions
def test_bytes_by_kind_are_those_of_the_arrays(on_cpus):
    """Against a real state on a real mesh; what XLA counts as arguments beside them (padding) is nothing on a CPU."""
    config, planned = on_cpus
    mesh = make_mesh(config.mesh)
    with jax.set_mesh(mesh):
        state = programs(config, mesh).make_state()

    def held(tree):
        return sum(leaf.addressable_shards[0].data.nbytes for leaf in jax.tree.leaves(tree))

    assert planned.memory.parameters == held(state.params)
    assert planned.memory.moments == held((state.step, state.optimizer))
    assert planned.memory.batch == 2 * 4 * 16 * 256 // 8
    assert planned.memory.padding == 0
    assert planned.parameters == sum(leaf.size for leaf in jax.tree.leaves(state.params))
    assert planned.fits and planned.cost.bounds is None and planned.memory.limit is None


def test_evaluation_is_planned_as_it_will_run(on_cpus):
    """A batch has evaluate.batch_tokens, and a window for each device at least."""
    config, planned = on_cpus
    assert [(each.length, each.rows, each.fits) for each in planned.evaluations] == [(64, 128, True), (512, 16, True)]
    assert planned.evaluations[0].cost.flops.per_token * 3 == train_flops_per_token(config.model, 64)
    assert "evaluation at" in text(planned)


def test_activations_kept_are_one_array_a_layer_with_remat():
    """Two layers' inputs in bfloat16 and the last's output, split over the batch; without remat many times that."""
    layer = 16 * 256 * 256 * 2 // 8
    mesh, kept = mesh_on(MeshConfig(), find_topology("cpu:8")), {}
    with jax.set_mesh(mesh):
        for remat in (False, True):
            config = small(MeshConfig(), {"remat": remat})
            kept[remat] = activation_bytes(config, abstract_state(config, mesh).params)
    assert 2 * layer <= kept[True] < 10 * layer < kept[False]


@pytest.mark.versions
def test_a_plan_for_tpus_has_bounds(on_tpus):
    config, planned = on_tpus
    assert planned.fits and planned.excess == 0 and planned.memory.limit == 15.75 * GIB
    assert 0 <= planned.memory.padding and planned.memory.peak < GIB
    flops, bound = planned.cost.flops, planned.cost.bounds
    assert flops.model == train_flops_per_token(config.model, 256) * 16 * 256
    assert bound.compute == pytest.approx(flops.model / 4 / 197e12)
    assert bound.memory == planned.cost.hbm_bytes / 819e9
    sent = sum(each.times * each.sent for each in planned.cost.collectives)
    assert bound.interconnect == pytest.approx(sent / (2 * 50e9)), "of four links two lead to a neighbour in 2x2"
    assert bound.network is None
    assert bound.seconds == max(bound.times.values()) == bound.times[bound.binds]
    assert bound.best_utilisation == pytest.approx(bound.compute / bound.seconds)
    assert any("weights of the MLP" in each.purpose for each in planned.cost.collectives)


def test_what_remat_keeps_is_not_counted_twice():
    """Of the forward pass, which is a third of a step's operations: all layers again, less attention, or nothing."""
    mesh, again = mesh_on(MeshConfig(), find_topology("cpu:8")), {}
    with jax.set_mesh(mesh):
        for saves in ("inputs", "attention", "products"):
            again[saves] = train_flops(small(MeshConfig(), {"remat": True, "remat_saves": saves}))
    layers = 2 * 2 * (4 * 256**2 + 2 * 256 * 512) * 16 * 256
    assert again["attention"].recomputed == layers and again["products"].recomputed == 0
    assert again["inputs"].recomputed == pytest.approx(layers + again["inputs"].attention / 3)


def test_a_choice_of_remat_that_recomputes_less_is_named_where_it_fits():
    config, mesh = (
        small(MeshConfig(), {"remat": True, "remat_saves": "inputs"}),
        mesh_on(MeshConfig(), find_topology("cpu:8")),
    )
    with jax.set_mesh(mesh):
        params = abstract_state(config, mesh).params
        sizes = {saves: activation_bytes(replace(config, "model", remat_saves=saves), params) for saves in REMAT_SAVES}
        memory = Memory(0, 0, 0, 0, sizes["inputs"], 0, 0, sizes["inputs"], sizes["inputs"], 0)

        def lines(limit: int | None, keeps: str = "inputs") -> str:
            return " ".join(cheaper_remat(config, keeps, dataclasses.replace(memory, limit=limit), params))

        assert "--model.remat-saves products (now inputs)" in lines(2 * sizes["products"])
        assert "--model.remat-saves attention (now inputs)" in lines((sizes["products"] + sizes["attention"]) // 2)
        assert (
            lines(sizes["inputs"]) == lines(None) == lines(2 * sizes["products"], "products") == lines(GIB, "all") == ""
        )


def test_attention_takes_what_its_kernels_take_or_its_operations(monkeypatch):
    config, topology = small(MeshConfig(fsdp=2, tensor=2), {"remat": True}), find_topology("v5e:2x2")
    calls = []
    monkeypatch.setattr(bounds, "attention_seconds", lambda *call: calls.append(call) or 0.5)
    with jax.set_mesh(mesh_on(config.mesh, topology)):
        flops = train_flops(replace(config, "model", remat_saves="inputs"))
        batch = Batch(config.model, 16, 256, share=0.25)
        kernels, operations = (attention_of(topology, batch, flops, each) for each in (True, False))
        both_ways = batch._replace(model=dataclasses.replace(config.model, position="none", causal=False))
        assert not attention_of(topology, both_ways, flops, True).by_bundles, "bundles are those of causal attention"
    assert calls == [("v5e", 2, 64, "bfloat16", 8, 256, 0.25, ("forward", "forward", "backward"))], "of one device"
    assert kernels == Attention(2 * 0.5, 0.25, by_bundles=True), "two layers"
    peak = 4 * 197e12
    assert operations.seconds == pytest.approx(0.25 * flops.attention * 4 / 3 / peak), "forward twice"
    bound = bounds_of(topology, flops, 1, [], kernels)
    others = flops.model + flops.recomputed - flops.attention * 4 / 3
    assert bound.compute == pytest.approx(others / peak + 1.0)
    useful = flops.model - 0.75 * flops.attention
    assert bound.best_utilisation == pytest.approx(useful / peak / bound.compute), "blocks that are visited count"


def test_a_plan_is_reported_and_kept(on_tpus):
    config, planned = on_tpus
    report = text(planned)
    for expected in (
        "It fits",
        "of the 15.75 GiB",
        "Bound by memory",
        "MFU",
        "Roofline",
        "all blocks of keys: operations over the bfloat16 peak",
        "data 1 x fsdp 4",
    ):
        assert expected in report
    kept = json.loads(json_text([planned], config, "python main.py plan ..."))
    assert kept["plans"][0]["memory"] == dataclasses.asdict(planned.memory)
    assert {"command", "versions", "date", "config"} <= kept.keys() and "libtpu" in kept["versions"]


def test_what_does_not_fit_says_by_how_much_and_what_to_change():
    config = small(
        MeshConfig(data=4, fsdp=1),
        {"num_layers": 24, "width": 1024, "mlp_width": 4096},
        train_length=2048,
        batch_size=256,
    )
    planned = plan(config, find_topology("v5e:2x2"))
    assert not planned.fits and planned.cost is None
    assert planned.excess == planned.memory.peak - planned.memory.limit > GIB
    report = text(planned)
    assert f"It does not fit: {planned.memory.peak / GIB:,.2f} GiB" in report and "15.75" in report
    for change in ("--mesh.fsdp 4", "--model.remat", "--train.gradient-accumulation 2", "--mesh.sequence 2"):
        assert change in report
    bare = replace(replace(config, "mesh", data=1, fsdp=4), "model", remat=True)
    changes = " ".join(advice(bare, mesh_on(bare.mesh, find_topology("v5e:2x2")), "inputs"))
    assert "fsdp" not in changes and "remat" not in changes, "only what can still be changed"


def test_the_peak_is_what_the_compiler_refuses_by():
    """One matrix more and the peak is above the limit. Arguments and temporary memory add up to more than that before."""

    def step(weights, moments):
        kept = jax.lax.scan(lambda carry, matrix: (carry + matrix, carry), weights[0], weights)[1]
        gradients = jax.lax.scan(lambda carry, pair: (carry + pair[0], pair[1] + carry), weights[0], (weights, kept))[1]
        moments = moments + gradients / gradients.max()
        return weights - moments, moments

    mesh = mesh_on(MeshConfig(), find_topology("v5e:1x1"))
    compiles = jax.jit(step, donate_argnums=(0, 1))

    def of(matrices: int) -> Compiled | Overflow:
        shape = jax.ShapeDtypeStruct((matrices, 1024, 1024), jnp.float32, sharding=NamedSharding(mesh, PartitionSpec()))
        return compiled(compiles.lower(shape, shape))

    with jax.set_mesh(mesh), effort(full=False):
        fits, too_large = of(1007), of(1008)
    assert fits.peak <= CHIPS["v5e"].usable_bytes < fits.side_by_side
    assert too_large.used == too_large.limit == CHIPS["v5e"].usable_bytes, "to the hundredth of a GiB that is printed"


def test_what_the_compiler_says_of_memory():
    assert overflow_of("Used 20.50G of 15.75G hbm. Exceeded hbm capacity by 4.75G.") == (20.5 * GIB, 15.75 * GIB)
    assert overflow_of("temporaries (768.00M) exceeds available HBM (1.00G).") == (0.75 * GIB, GIB)
    assert overflow_of("INTERNAL: Mosaic failed to compile") is None


@pytest.mark.parametrize(
    "name", ["v9:2x2", "v5e", "v5e:32x16", "v5e:3x5", "v5p:16x16", "cpu:2x4", "v5p-128", "v5e:0x2"]
)
def test_an_unknown_topology_is_refused_and_the_known_ones_named(name):
    with pytest.raises(ConfigError, match=r"v5e:1x1 \.\.\. 16x16.*v5p:2x2x1 \.\.\. 16x16x24.*cpu:1"):
        find_topology(name)


def test_more_cpus_than_there_are_are_refused():
    assert len(jax.devices()) == 8  # running, and no longer to be told otherwise
    with pytest.raises(ConfigError, match="xla_force_host_platform_device_count=64"):
        find_topology("cpu:64")


@pytest.mark.parametrize(
    "name, devices, chips, links", [("v5p:4x4x4", 64, 64, 6), ("v5e:2x4", 8, 8, 3), ("tpu7x:2x2x1", 8, 4, 2)]
)
def test_topologies(name, devices, chips, links):
    topology = find_topology(name)
    assert (len(topology.devices), topology.chips, topology.links) == (devices, chips, links)
    assert chip_of(topology.devices[0].device_kind) is topology.chip


def test_slices_split_the_first_axis():
    topology = find_topology("v5e:4x4", slices=2)
    mesh = mesh_on(MeshConfig(data=2, fsdp=8, tensor=2), topology)
    assert mesh.devices.shape == (2, 8, 2, 1)
    for part in range(2):
        assert {device.slice_index for device in mesh.devices[part].flat} == {part}


def test_a_mesh_that_does_not_multiply_out_is_refused():
    with pytest.raises(ConfigError, match="sizes that multiply to the number of devices"):
        plan(small(MeshConfig(data=3, fsdp=1)), find_topology("v5e:2x2"))
    with pytest.raises(ConfigError, match="multiple of 4"):
        plan(small(MeshConfig(data=4, fsdp=1), batch_size=6), find_topology("v5e:2x2"))
    with pytest.raises(ConfigError, match="length"):
        plan(small(MeshConfig(data=1, sequence=4)), find_topology("v5e:2x2"), lengths=(510,))


def test_the_vocabulary_is_that_of_the_tokenizer():
    bare = small(MeshConfig(), {"vocab_size": None})
    sizes = {"bytes": DataConfig(), "bpe": DataConfig(tokenizer="bpe", bpe_vocab_size=4096)}
    known = {
        name: with_vocabulary(dataclasses.replace(bare, data=data)).model.vocab_size for name, data in sizes.items()
    }
    assert known == {"bytes": 256, "bpe": 4096}
    with pytest.raises(ConfigError, match="before the text is read"):
        with_vocabulary(dataclasses.replace(bare, data=DataConfig(tokenizer="words")))


def test_the_compiler_works_as_hard_afterwards_as_before():
    before = jax.config.jax_optimization_level
    with effort(full=False):
        assert jax.config.jax_optimization_level == "O1"
    assert jax.config.jax_optimization_level == before


def test_candidates_divide_and_the_quickest_come_first():
    assert len(list(factorisations(8, 4))) == 20 and all(math.prod(each) == 8 for each in factorisations(8, 4))
    topology = find_topology("v5e:2x4")
    planned = candidates(small(MeshConfig()), topology, batches=(16, 64))
    assert {each.config.train.batch_size for each in planned} == {16, 64}
    for each in planned[::50]:
        check_mesh(each.config, mesh_on(each.config.mesh, topology))
    orders = [each.order for each in planned]
    assert orders == sorted(orders)
    odd = {"width": 255, "num_heads": 3, "mlp_width": 511, "vocab_size": 513}
    with pytest.raises(ConfigError, match="divides this recipe"):
        search(small(MeshConfig(), odd, train_length=255, batch_size=15), topology)


def test_a_search_ranks_what_fits_by_its_bound():
    """Compiled for eight CPU devices, which is quick, and reckoned as if each were a v5e chip."""
    topology = find_topology("cpu:8")._replace(chip=CHIPS["v5e"], links=3)
    planned = search(small(MeshConfig(), {"num_layers": 1}), topology, tries=2)
    assert len(planned) == 2 and all(each.fits for each in planned)
    assert planned[0].cost.bounds.seconds <= planned[1].cost.bounds.seconds
    assert len(search_text(planned).splitlines()) == 3


def test_the_command(tmp_path, capsys):
    recipe, out = tmp_path / "recipe.json", tmp_path / "plan.json"
    recipe.write_text(to_json(small(MeshConfig(), {"num_layers": 1})))
    options = ["--topology", "cpu:8", "--mesh.data", "2", "--mesh.fsdp", "-1", "--json", str(out)]
    assert main(["plan", str(recipe), *options]) == 0
    assert "It fits" in capsys.readouterr().out
    assert json.loads(out.read_text())["plans"][0]["mesh"] == {"data": 2, "fsdp": 4, "tensor": 1, "sequence": 1}
    assert main(["plan", str(recipe), "--topology", "v5z:2x2"]) == 2


def test_a_share_of_attention_that_cannot_be_is_refused(tmp_path, capsys):
    (tmp_path / "recipe.json").write_text(to_json(small(MeshConfig())))
    command = ["plan", str(tmp_path / "recipe.json"), "--topology", "cpu:8", "--attention-share"]
    with pytest.raises(SystemExit, match="^2$"):
        main([*command, "1.5"])
    assert main([*command, str(tmp_path / "no.csv")]) == 2
    assert main([*command, "0.5", "--model.position", "rotary"]) == 2
    shown = capsys.readouterr().err
    for expected in ("got 1.5", "no.csv, which is no file", "only ALiBi's reach skips blocks"):
        assert expected in shown


def test_a_plan_that_does_not_fit_ends_with_status_1(tmp_path, capsys, monkeypatch):
    (tmp_path / "recipe.json").write_text(to_json(small(MeshConfig())))
    monkeypatch.setattr(commands, "plan_run", lambda *_, **__: ("It does not fit", False))
    with pytest.raises(SystemExit, match="^1$"):
        main(["plan", str(tmp_path / "recipe.json"), "--topology", "cpu:8"])
    assert "It does not fit" in capsys.readouterr().out


def test_every_row_of_the_pods_experiment_divides():
    for row in (pods.PODS | pods.weak_scaling()).values():
        config = with_vocabulary(row.config(load_config(pods.RECIPE)))
        check_mesh(config, mesh_on(config.mesh, find_topology(row.topology, row.slices)))


def test_the_pods_experiment_writes_its_tables(on_tpus):
    planned = json.loads(json.dumps(record(on_tpus[1])))
    kept = {"a pod": {"plan": planned, "command": "python -m experiments.pods", "versions": {}, "date": "2026-01-01"}}
    page = pods.results(["a pod"], kept)
    assert len(pods.cells("a pod", planned)) == len(pods.HEADING)
    assert "| a pod | v5e:2x2 | 4 | data 1 x fsdp 4 x tensor 1 x sequence 1 | 16 x 256 |" in page
    assert page.count("| 2026-01-01 |") == 1, "when it was compiled"
    assert pods.cells("", planned | {"cost": None, "excess": GIB})[-3] == "does not fit: 1.00 GiB too much"


def test_chips_are_found_by_the_kind_jax_names():
    assert chip_of("TPU v5").name == "v5p" and chip_of("TPU v5 lite").name == "v5e"
    assert chip_of("NVIDIA H100 PCIe").name == "H100 PCIe" and chip_of("NVIDIA H100 80GB HBM3").name == "H100"
    assert chip_of("cpu") is None
    assert peak_flops("TPU7x") == CHIPS["tpu7x"].flops / 2, "jax shows a chip as two devices"
    published = {"v4": 300, "v5e": 200, "v5p": 600, "v6e": 400, "tpu7x": 600, "A100": 300, "H100": 450, "H200": 450}
    for name, rate in published.items():  # GB/s one way
        assert CHIPS[name].interconnect_rate == rate * 1e9 and CHIPS[name].source.startswith("https://")


def test_the_largest_recipe_compiles_for_a_pod_with_our_kernel_and_no_square_of_its_length():
    """Lengths are 4,096, which no width of the model is; 256 devices, 64 x 4: 4 sequences and 12,576 words a device."""
    config = with_vocabulary(load_config("configs/cc100_1b3.py"))
    config = replace(replace(config, "train", train_length=4096, batch_size=256), "mesh", data=1, fsdp=64, tensor=4)
    mesh = mesh_on(config.mesh, find_topology("v5e:16x16"))
    with jax.set_mesh(mesh), effort(full=False):
        step = compile_step(config, mesh, abstract_state(config, mesh))
    assert step.peak < 9 * GIB, "what each layer keeps is chosen to fit"
    kernels = [line for line in step.text.splitlines() if 'custom_call_target="tpu_custom_call"' in line]
    forward = [line for line in kernels if "%alibi_forward" in line]
    assert len(forward) == 1 < len(kernels), "attention's forward pass is kept, and not run again backward"
    arrays = shapes(step.text)
    assert not [dims for _, dims in arrays if dims.count(4096) > 1], "somebody's scores are there whole"
    whole = 4 * 4096 * 12_576
    assert not [dims for kind, dims in arrays if kind == "f32" and math.prod(dims) >= whole], "logits are there whole"
    sent = collectives(Program(step.text), dict(mesh.shape))
    gradients = {each.kind for each in sent if each.purpose.startswith("gradients of the MLP")}
    assert gradients == {"reduce-scatter"}, "no device is sent all of a layer's gradients"
