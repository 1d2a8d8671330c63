import os
from types import SimpleNamespace

import pytest
import torch
from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

from smallm_hf.base.errors import UserError
from smallm_hf.training import devices, launch
from smallm_hf.training.configuration import TrainingConfig
from smallm_hf.training.devices import (
    accelerator_type,
    peak_flops,
    resolve_batch_size,
    resolve_compile,
    resolve_decoding_compile,
    resolve_loss,
    resolve_precision,
    set_cpu_threads,
)
from smallm_hf.training.launch import build_accelerator, check_launch
from smallm_hf.training.sharding import sharding_plugin


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch):
    for name in [*os.environ]:
        if name.startswith(("ACCELERATE_", "FSDP_")) or name in (
            "MASTER_ADDR",
            "WORLD_SIZE",
            "LOCAL_WORLD_SIZE",
            *launch.MPI_SIZES,
        ):
            monkeypatch.delenv(name)


@pytest.fixture
def on(monkeypatch):
    """Pretends to run on a device with given features."""

    def pretend(device: str, **features: bool) -> None:
        monkeypatch.setattr(devices, "accelerator_type", lambda: device)
        monkeypatch.setattr(launch, "accelerator_type", lambda: device)
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: features)
        monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: features.get("onednn", True))
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: features.get("bf16", False))

    return pretend


@pytest.mark.parametrize(
    ("device", "features", "precision"),
    [
        ("cpu", {}, "fp32"),
        ("cpu", {"avx512_bf16": True}, "bf16"),
        ("cpu", {"amx_bf16": True}, "bf16"),
        ("cpu", {"avx512_bf16": True, "onednn": False}, "fp32"),  # as ONEDNN_MAX_CPU_ISA=AVX2 makes it
        ("cuda", {"bf16": True}, "bf16"),
        ("cuda", {"bf16": False}, "fp16"),
        ("mps", {}, "fp32"),
    ],
)
def test_auto_takes_the_precision_the_hardware_multiplies(on, device, features, precision):
    on(device, **features)
    assert resolve_precision("auto") == precision


def test_fp16_on_a_cpu_is_refused(on):
    on("cpu")
    with pytest.raises(UserError, match="training.precision=fp16 needs a GPU.*use bf16, fp32 or auto"):
        resolve_precision("fp16")


def test_auto_takes_what_the_launcher_was_given(on, monkeypatch):
    on("cpu")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert resolve_precision("auto") == "bf16"
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert resolve_precision("auto") == "fp32"


def test_a_launcher_that_contradicts_the_config_is_refused_with_both_values(on, monkeypatch):
    on("cuda", bf16=True)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp16")
    with pytest.raises(UserError, match="training.precision=bf16 contradicts the launcher's mixed precision fp16"):
        resolve_precision("bf16")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "fp8")
    with pytest.raises(UserError, match="fp8 is neither bf16 nor fp16"):
        resolve_precision("auto")


def test_compiling_is_left_out_where_it_would_not_pay(on, monkeypatch):
    on("cpu")
    monkeypatch.setattr(devices, "_can_compile", lambda device, say: True)
    assert not resolve_compile("auto", planned_flops=1e9, planned_seconds=None)
    assert resolve_compile("auto", planned_flops=1e18, planned_seconds=None)
    assert resolve_compile("auto", planned_flops=None, planned_seconds=60)
    assert not resolve_compile("auto", planned_flops=None, planned_seconds=5)
    assert not resolve_compile("auto", planned_flops=1e9, planned_seconds=3600)
    assert resolve_compile("auto", planned_flops=None, planned_seconds=170, compilable=0.5)
    assert not resolve_compile("auto", planned_flops=None, planned_seconds=170, compilable=0.1)
    assert not resolve_compile("auto", planned_flops=1e18, planned_seconds=None, compilable=1e-7)


def test_compiling_what_writes_is_left_out_for_few_tokens(on, monkeypatch):
    on("cpu")
    monkeypatch.setattr(devices, "_can_compile", lambda device, say: True)
    assert [resolve_decoding_compile("auto", tokens) for tokens in (200, 9_999, 10_000)] == [False, False, True]
    monkeypatch.setattr(devices, "missing_for_compiling", lambda device: None)
    assert resolve_decoding_compile(True, 1) and not resolve_decoding_compile(False, 10**9)
    monkeypatch.setattr(devices, "_can_compile", lambda device, say: False)
    assert not resolve_decoding_compile("auto", 10**9)


def test_compiling_needs_the_headers_of_python(on, monkeypatch, tmp_path):
    on("cpu")
    monkeypatch.setattr(devices, "shutil", SimpleNamespace(which=lambda name: "/bin/c++"))
    monkeypatch.setattr(devices.sysconfig, "get_path", lambda name: str(tmp_path))
    said = []
    assert not resolve_compile("auto", planned_flops=1e18, planned_seconds=None, say=said.append)
    if devices.sys.platform == "linux":
        assert said == [
            "not compiling, though it would pay: that needs Python.h, the headers of Python (often in a package "
            "python3-dev), not found here"
        ]
    (tmp_path / "Python.h").touch()
    assert resolve_compile("auto", planned_flops=1e18, planned_seconds=None) == (devices.sys.platform == "linux")


@pytest.mark.skipif(devices.sys.platform != "linux", reason="elsewhere what is needed is not known")
def test_compiling_that_is_asked_for_without_a_compiler_is_refused_and_auto_goes_without_and_says_so(on, monkeypatch):
    on("cpu")
    monkeypatch.setenv("CXX", "no-such-compiler")  # Inductor looks for no other then, though there be one
    said = []
    assert not resolve_compile("auto", planned_flops=1e18, planned_seconds=None, say=said.append)
    assert not resolve_decoding_compile("auto", 10**6, said.append)
    assert (
        said == ["not compiling, though it would pay: that needs the C++ compiler no-such-compiler, not found here"] * 2
    )
    assert not resolve_compile("auto", planned_flops=1, planned_seconds=None, say=said.append)  # it would not pay
    assert not resolve_compile(False, planned_flops=1e18, planned_seconds=None, say=said.append) and len(said) == 2
    needed = "needs the C\\+\\+ compiler no-such-compiler, not found here; install it, or give"
    with pytest.raises(UserError, match=f"training.compile=true {needed} --training.compile false"):
        resolve_compile(True, planned_flops=0, planned_seconds=None)
    with pytest.raises(UserError, match=f"--compile true {needed} --compile false"):
        resolve_decoding_compile(True, 1)


def test_a_launchers_single_thread_becomes_a_share_of_the_cores(on, monkeypatch):
    on("cpu")
    chosen = []
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: range(8), raising=False)
    monkeypatch.setattr(devices.psutil, "cpu_count", lambda logical: 8)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    set_cpu_threads(None)  # no launcher: the user's own choice stands
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    set_cpu_threads(None)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    set_cpu_threads(None)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_cpu_threads(None)
    set_cpu_threads(5)
    assert chosen == [8, 2, 5]


AUTO = TrainingConfig(max_steps=1, context_length=128, batch_size="auto", global_batch_size=24)


def gibibytes_per_window(training: TrainingConfig) -> int:
    return 2**30 * training.batch_size


@pytest.mark.parametrize(
    ("device", "free_gib", "processes", "sizes"),
    [
        ("cuda", 100, 1, (24, 1)),
        ("cuda", 11, 1, (8, 3)),  # 8.8 of it can be used
        ("cuda", 100, 2, (12, 2)),
        ("cuda", 11, 3, (8, 3)),
        ("cpu", 100, 1, (24, 1)),
        ("cpu", 6, 1, (4, 6)),
    ],
)
def test_an_automatic_batch_is_the_largest_divisor_of_the_update_that_fits(
    on, monkeypatch, device, free_gib, processes, sizes
):
    on(device)
    monkeypatch.setattr(devices, "_free_memory_bytes", lambda: free_gib * 2**30)
    resolved = resolve_batch_size(AUTO, gibibytes_per_window, processes)
    assert (resolved.batch_size, resolved.accumulation_steps) == sizes
    assert resolved.windows_per_step == AUTO.windows_per_step == 24


def test_an_automatic_batch_on_a_cpu_is_no_larger_than_what_makes_it_faster(on, monkeypatch):
    on("cpu")
    monkeypatch.setattr(devices, "_free_memory_bytes", lambda: 2**50)
    many = TrainingConfig(max_steps=1, context_length=128, batch_size="auto", global_batch_size=1024)
    assert resolve_batch_size(many, gibibytes_per_window, 1).batch_size == 32


def test_a_stated_batch_is_left_alone():
    stated = TrainingConfig(max_steps=1, batch_size=5)
    assert resolve_batch_size(stated, gibibytes_per_window, 1) is stated


def test_a_window_that_cannot_fit_is_refused(on, monkeypatch):
    on("cpu")
    monkeypatch.setattr(devices, "_free_memory_bytes", lambda: 2**29)
    with pytest.raises(UserError, match="context_length=128 takes about 1.0 GiB, and 0.4 GiB can be used here"):
        resolve_batch_size(AUTO, gibibytes_per_window, 1)
    with pytest.raises(UserError, match="global_batch_size=24 is shared by 5 processes and does not divide"):
        resolve_batch_size(AUTO, gibibytes_per_window, 5)


@pytest.mark.parametrize(
    ("device", "requested", "logits_gib", "loss"),
    [
        ("cuda", "auto", 1, "logits"),
        ("cuda", "auto", 5, "chunked"),
        ("cpu", "auto", 5, "logits"),
        ("cpu", "chunked", 1, "chunked"),
        ("cuda", "logits", 5, "logits"),
    ],
)
def test_auto_computes_the_loss_in_parts_where_logits_would_fill_a_gpu(
    on, monkeypatch, device, requested, logits_gib, loss
):
    on(device)
    monkeypatch.setattr(devices, "_total_gpu_bytes", lambda: 16 * 2**30)
    assert resolve_loss(requested, logits_bytes=logits_gib * 2**30) == loss


@pytest.mark.parametrize(
    ("name", "tflops"),
    [
        ("NVIDIA H200", 989),
        ("NVIDIA H100 PCIe", 756),
        ("Tesla T4", 65),
        ("NVIDIA L40S", 362),
        ("NVIDIA L4", 121),
        ("Unheard-of", None),
    ],
)
def test_the_peak_of_a_known_gpu_is_that_of_its_data_sheet(on, monkeypatch, name, tflops):
    on("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: name)
    assert peak_flops(None, "bf16") == (tflops and tflops * 1e12)
    assert peak_flops(None, "fp32") is None
    assert peak_flops(3.5, "fp32") == 3.5e12


def test_a_cpu_has_no_peak_but_the_stated_one(on):
    on("cpu")
    assert peak_flops(None, "bf16") is None
    assert peak_flops(0.2, "bf16") == 2e11


@pytest.mark.parametrize(
    ("variable", "engine"),
    [
        ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed"),
        ("ACCELERATE_USE_MEGATRON_LM", "Megatron-LM"),
        ("ACCELERATE_USE_PARALLELISM_CONFIG", "a parallelism_config"),
    ],
)
def test_an_engine_that_the_loop_does_not_know_is_refused_also_where_it_would_be_ignored(
    on, monkeypatch, variable, engine
):
    on("cpu")
    monkeypatch.setenv(variable, "false")
    check_launch()
    monkeypatch.setenv(variable, "true")
    with pytest.raises(UserError, match=rf"asked to use {engine}, which .* not written for.*accelerate/fsdp2\.yaml"):
        check_launch()


@pytest.fixture
def fsdp(on, monkeypatch):
    """What `accelerate launch --config_file configs/accelerate/fsdp2.yaml` leaves."""
    on("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv("FSDP_VERSION", "2")


def test_fsdp_is_refused_on_a_cpu_where_it_would_be_ignored(on, fsdp):
    check_launch()
    on("cpu")
    with pytest.raises(UserError, match=r"asked to use FSDP, which it does not on a CPU.*cpu_2_processes\.yaml"):
        check_launch()


@pytest.mark.parametrize(
    ("variable", "value", "fix"),
    [
        ("FSDP_VERSION", "1", "set fsdp_version: 2"),
        ("FSDP_OFFLOAD_PARAMS", "true", "leave it out"),
        ("FSDP_ACTIVATION_CHECKPOINTING", "true", r"set training\.activation_checkpointing"),
    ],
)
def test_what_fsdp_is_given_against_the_loop_is_refused(fsdp, monkeypatch, variable, value, fix):
    monkeypatch.setenv(variable, value)
    with pytest.raises(UserError, match=f"given {variable.lower()}={value}, and .*; {fix}"):
        check_launch()


def test_fsdp_that_does_not_come_about_is_refused(fsdp, monkeypatch):
    found = SimpleNamespace(num_processes=1, is_fsdp2=True)
    monkeypatch.setattr(launch, "Accelerator", lambda **_: found)
    assert build_accelerator("fp32") is found
    found.is_fsdp2 = False
    with pytest.raises(UserError, match=r"asked to use FSDP and does not \(processes: 1\); raise --num_processes"):
        build_accelerator("fp32")


def test_fsdp_keeps_the_precision_of_the_recipe_and_reads_all_weights(fsdp, monkeypatch):
    monkeypatch.setenv("FSDP_AUTO_WRAP_POLICY", "TRANSFORMER_BASED_WRAP")
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "true")
    plugin = sharding_plugin()
    plugin.set_mixed_precision("bf16")  # as Accelerate does
    assert plugin.mixed_precision_policy.param_dtype is None and plugin.mixed_precision_policy.reduce_dtype is None
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy
    assert os.environ["FSDP_CPU_RAM_EFFICIENT_LOADING"] == "False"  # which transformers reads


def test_a_second_compiler_and_a_second_accumulation_are_refused(monkeypatch):
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "NO")
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    check_launch()
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    with pytest.raises(UserError, match=r"gradient_accumulation_steps=4 and .*set training\.accumulation_steps"):
        check_launch()
    monkeypatch.setenv("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR")
    with pytest.raises(UserError, match=r"dynamo_backend=inductor and .*set training\.compile"):
        check_launch()


def test_one_process_in_place_of_several_is_refused(monkeypatch):
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    check_launch()  # a user's own variable
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    with pytest.raises(UserError, match=r"has started one .*cpu_2_processes\.yaml.*unset MASTER_ADDR"):
        check_launch()
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launch()


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"])
def test_processes_of_mpi_are_refused(monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    check_launch()
    monkeypatch.setenv(variable, "3")
    with pytest.raises(UserError, match=rf"MPI has started 3 processes \({variable}\).*torchrun"):
        check_launch()


def test_more_processes_than_gpus_are_refused(on, monkeypatch):
    on("cuda")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "3")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    check_launch()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    with pytest.raises(UserError, match="3 processes were started here for 2 GPUs; set --num_processes"):
        check_launch()


def test_processes_that_have_not_found_each_other_are_refused(monkeypatch):
    monkeypatch.setattr(launch, "Accelerator", lambda **_: SimpleNamespace(num_processes=1))
    assert build_accelerator("fp32").num_processes == 1
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"started 2 processes \(WORLD_SIZE\) and Accelerate finds 1"):
        build_accelerator("fp32")


def test_a_gpu_that_the_launcher_hides_is_not_used(monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda **_: torch.device("cuda"))
    assert accelerator_type() == "cuda"
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert accelerator_type() == "cpu"


@pytest.mark.parametrize(
    ("words", "asked"),
    [
        (["--quiet"], None),
        (["--cpu", "--config_file", "gpu.yaml"], None),
        (["--config_file", "cpu.yaml"], None),
        (["--config_file", "gpu.yaml"], "--config_file gpu.yaml"),
        (["--config_file=gpu.yaml"], "--config_file gpu.yaml"),
        (["--multi_gpu", "--num_processes", "2"], "--multi_gpu"),
        (["--gpu_ids", "0"], "--gpu_ids"),
    ],
)
def test_gpus_that_the_launcher_was_given_and_are_not_here_are_refused(on, monkeypatch, tmp_path, words, asked):
    (tmp_path / "gpu.yaml").write_text('distributed_type: "NO"\nnum_processes: 1\n')
    (tmp_path / "cpu.yaml").write_text("distributed_type: MULTI_GPU\nuse_cpu: true\n")
    monkeypatch.chdir(tmp_path)
    line = ["python", "accelerate", "launch", *words, "scripts/train.py", "--config", "recipe.yaml"]
    monkeypatch.setattr(launch.psutil, "Process", lambda pid: SimpleNamespace(cmdline=lambda: line))
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    on("cpu")
    if asked:
        with pytest.raises(UserError, match=f"was given {asked}, which is for GPUs, and torch .* finds none"):
            check_launch()
        monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    check_launch()
