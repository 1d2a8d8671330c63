"""A tracker shows the record, each step once, whatever happens to the run or to the tracker."""

import json
import os
import struct
import sys
import time
import uuid
from pathlib import Path

import pytest
from accelerate.state import PartialState
from accelerate.tracking import TensorBoardTracker
from jsonargparse import ArgumentParser

from smallm_hf.base.errors import UserError
from smallm_hf.training import tracking
from smallm_hf.training.progress import RunLog, read_records
from smallm_hf.training.tracking import LoggingConfig, Trackers, flat, metric_panels, sample_panel

CONFIG = {"training": {"learning_rate": 0.5, "max_steps": None, "sample_prompts": ["", "a"]}}


@pytest.fixture(scope="session")
def trackio_folder(tmp_path_factory) -> Path:
    """Trackio reads TRACKIO_DIR once, so every test of a process shares a folder."""
    return tmp_path_factory.mktemp("trackio")


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path, trackio_folder, fresh_accelerator):
    monkeypatch.setenv("TRACKIO_DIR", str(trackio_folder))
    monkeypatch.setenv("WANDB_MODE", "offline")
    for name in ("CACHE", "CONFIG", "DATA"):
        monkeypatch.setenv(f"WANDB_{name}_DIR", str(tmp_path / "wandb"))
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_NAME", "WANDB_RUN_ID", "TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL"):
        monkeypatch.delenv(name, raising=False)
    PartialState(cpu=True)  # of a run, its Accelerator; Accelerate's trackers ask it who is the main process
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].finish()


@pytest.fixture(params=["tensorboard", "trackio", "wandb"])
def tracker(request) -> str:
    pytest.importorskip(request.param, reason=f"{request.param} is not installed")
    return request.param


@pytest.fixture
def run(tmp_path) -> Path:
    """A run folder whose name no other test uses."""
    folder = tmp_path / "runs" / uuid.uuid4().hex
    folder.mkdir(parents=True)
    return folder


class Interruption(Exception):
    pass


def train(run: Path, report_to, steps, loss, *, first_step=0, finished=False, dies=False, say=print) -> None:
    """A run that reports every step, and validates and samples at each twentieth."""
    trackers = Trackers(LoggingConfig(report_to, project=run.name), run, say)
    log = RunLog(run, True, first_step, finished, mirror=trackers.write)
    try:
        with trackers.mirroring(CONFIG, first_step):
            for step in steps:
                if not finished:
                    log.write("metrics", {"step": step, "tokens": step * 8, "loss": loss, "learning_rate": 0.25})
                if step % 20 == 0:
                    log.write("metrics", {"tokens": step * 8, "step": step, "validation_loss": loss})
                    for prompt in ("the <cat>", ""):
                        log.write("samples", {"step": step, "prompt": prompt, "text": f"*{loss}*\n"})
            if dies:
                raise Interruption
    except Interruption:
        pass


# --- what a tracker's own files hold ---------------------------------------------------------------------------------


def read_tensorboard(run: Path) -> list[tuple[int, dict]]:
    """What TensorBoard's server shows: without the events that a later session has made void."""
    from tensorboard.backend.event_processing.plugin_event_accumulator import EventAccumulator
    from tensorboard.util.tensor_util import make_ndarray

    events = EventAccumulator(str(run / "tensorboard"), size_guidance={"tensors": 0}).Reload()
    return [
        (event.step, {tag.removesuffix("/text_summary"): make_ndarray(event.tensor_proto).tolist()})
        for tag in events.Tags()["tensors"]
        if not tag.startswith("_hparams_")
        for event in events.Tensors(tag)
    ]


def read_trackio(run: Path) -> list[tuple[int, dict]]:
    import trackio
    from trackio.sqlite_storage import SQLiteStorage

    (known,) = trackio.Api().runs(run.name)
    assert known.name == run.name
    return [(record.pop("step"), record) for record in SQLiteStorage.get_logs(run.name, known.name, run_id=known.id)]


def wandb_records(run: Path) -> list:
    """The records of the one session that `wandb sync` would upload; the last are written just after `finish`."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        (file,) = run.glob("wandb/offline-run-*/run-*.wandb")
        records = parse_wandb(file.read_bytes())
        if any(record.HasField("exit") for record in records):
            return records
        time.sleep(0.01)
    pytest.fail(f"{file} holds no end of the session")


def parse_wandb(data: bytes) -> list:
    """LevelDB's log format after 7 bytes of header."""
    from wandb.proto.wandb_internal_pb2 import Record

    position, whole, records = 7, b"", []
    while position + 7 <= len(data):
        left = 32768 - position % 32768
        if left < 7:
            position += left
            continue
        _, size, kind = struct.unpack("<IHB", data[position : position + 7])
        whole += data[position + 7 : position + 7 + size]
        position += 7 + size
        if kind in (1, 4):  # full, last
            records.append(Record.FromString(whole))
            whole = b""
    return records


def read_wandb(run: Path) -> list[tuple[int, dict]]:
    return [
        (
            record.history.step.num,
            {item.key or item.nested_key[0]: json.loads(item.value_json) for item in record.history.item},
        )
        for record in wandb_records(run)
        if record.HasField("history")
    ]


READERS = {"tensorboard": read_tensorboard, "trackio": read_trackio, "wandb": read_wandb}


def shown(tracker: str, run: Path) -> dict[str, list]:
    """Every series a tracker shows, as (step, number) in the order it has them; of samples the steps alone."""
    series: dict[str, list] = {}
    for step, values in READERS[tracker](run):
        for name, value in values.items():
            if "/" in name:
                series.setdefault(name, []).append(step if name.startswith("samples/") else (step, value))
    return series


def recorded(run: Path) -> dict[str, list]:
    """The same of the record."""
    names = {"loss": "train/loss", "learning_rate": "train/learning_rate", "validation_loss": "validation/loss"}
    metrics = read_records(run, "metrics")
    series = {name: [(r["step"], r[key]) for r in metrics if key in r] for key, name in names.items()}
    series["progress/tokens"] = [(r["step"], r["tokens"]) for r in metrics if "loss" in r]
    sampled = [record["step"] for record in read_records(run, "samples") if record["prompt"]]
    return series | {"samples/the_cat": sampled, "samples/no_prompt": sampled}


# --- the record, each step once --------------------------------------------------------------------------------------


def test_a_tracker_shows_every_number_of_the_record_at_its_step(tracker, run):
    train(run, tracker, [10, 20], loss=2.0)
    assert shown(tracker, run) == {
        "train/loss": [(10, 2.0), (20, 2.0)],
        "train/learning_rate": [(10, 0.25), (20, 0.25)],
        "progress/tokens": [(10, 80), (20, 160)],
        "validation/loss": [(20, 2.0)],
        "samples/the_cat": [20],
        "samples/no_prompt": [20],
    }


@pytest.mark.parametrize("dies", [True, False])
def test_steps_repeated_after_a_resume_show_once_and_as_they_were_last(tracker, run, dies):
    train(run, tracker, [10, 20, 30, 40], loss=3.0, dies=dies)
    train(run, tracker, [30, 40, 50, 60], loss=2.0, first_step=20)
    expected = [(10, 3.0), (20, 3.0), (30, 2.0), (40, 2.0), (50, 2.0), (60, 2.0)]
    assert shown(tracker, run)["train/loss"] == expected
    assert shown(tracker, run) == recorded(run)


def test_a_repeated_closing_validation_shows_once_beside_its_step(tracker, run):
    train(run, tracker, [10, 20], loss=3.0)
    train(run, tracker, [20], loss=2.0, first_step=20, finished=True)
    assert shown(tracker, run)["train/loss"] == [(10, 3.0), (20, 3.0)]
    assert shown(tracker, run)["validation/loss"] == [(20, 2.0)]
    assert shown(tracker, run) == recorded(run)


def test_a_run_that_starts_afresh_in_its_folder_shows_nothing_of_before(tracker, run):
    train(run, tracker, [10, 20], loss=3.0, dies=True)
    train(run, tracker, [10, 20], loss=2.0)
    assert shown(tracker, run) == recorded(run)


def test_a_tracker_asked_for_at_a_resume_shows_the_whole_record(tracker, run):
    train(run, "none", [10, 20, 30], loss=3.0)
    train(run, tracker, [30, 40], loss=2.0, first_step=20)
    assert shown(tracker, run)["train/loss"] == [(10, 3.0), (20, 3.0), (30, 2.0), (40, 2.0)]
    assert shown(tracker, run) == recorded(run)


def test_a_server_that_continues_after_its_last_step_receives_no_step_twice(run, monkeypatch):
    """wandb online and Trackio on a Space hold their steps; here a stand-in for both."""
    sent = []

    class Server(tracking.TensorBoard):
        def start(self):
            self.held = 30

        def store_init_configuration(self, values): ...

        def sample(self, prompt, text): ...

        def log(self, values, step):
            sent.append(step)

        def finish(self): ...

    monkeypatch.setitem(tracking.TRACKERS, "tensorboard", Server)
    train(run, "none", [10, 20], loss=3.0)
    train(run, "tensorboard", [30, 40], loss=2.0, first_step=20)
    assert set(sent) == {40}


@pytest.mark.parametrize("dies", [True, False])
def test_a_tracker_ends_with_its_run_and_knows_whether_that_failed(run, monkeypatch, dies):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    ended = []
    monkeypatch.setattr(tracking.TensorBoard, "finish", lambda tracker: ended.append(tracker.failed))
    train(run, "tensorboard", [10], loss=3.0, dies=dies)
    assert ended == [dies]


@pytest.mark.parametrize("dies", [True, False])
def test_wandb_marks_a_run_that_died(run, dies):
    pytest.importorskip("wandb", reason="wandb is not installed")
    train(run, "wandb", [10], loss=3.0, dies=dies)
    (code,) = [record.exit.exit_code for record in wandb_records(run) if record.HasField("exit")]
    assert code == int(dies)


def test_samples_show_as_they_are(tracker, run):
    train(run, tracker, [20], loss=2.0)
    (sample,) = (values["samples/the_cat"] for _, values in READERS[tracker](run) if "samples/the_cat" in values)
    if tracker == "tensorboard":  # a code block of Markdown
        assert sample == [b"    the <cat>*2.0*\n"]
    elif tracker == "trackio":
        assert sample["_value"] == [{"prompt": "the <cat>", "text": "*2.0*\n"}]
    else:
        (page,) = run.glob("wandb/offline-run-*/files/media/html/samples/the_cat_20_*.html")
        assert "<b>the &lt;cat&gt;</b>*2.0*\n</pre>" in page.read_text()


def test_a_tracker_shows_the_config(tracker, run):
    train(run, tracker, [10], loss=2.0)
    if tracker == "tensorboard":
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
        from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

        content = EventAccumulator(str(run / "tensorboard")).Reload().PluginTagToContent("hparams")
        values = HParamsPluginData.FromString(content["_hparams_/session_start_info"]).session_start_info.hparams
        assert values["training/learning_rate"].number_value == 0.5
        assert values["training/sample_prompts"].string_value == '["", "a"]'
    elif tracker == "trackio":
        import trackio

        config = trackio.Api().runs(run.name)[0].config
        given = {key: value for key, value in config.items() if not key.startswith("_")}
        assert given == flat(CONFIG)
    else:
        updates = [item for record in wandb_records(run) for item in record.config.update]
        updates += [item for record in wandb_records(run) for item in record.run.config.update]
        config = {item.key or item.nested_key[0]: json.loads(item.value_json) for item in updates}
        assert config.items() >= flat(CONFIG).items()


# --- a tracker never stops a run -------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment", ["__init__", "start", "store_init_configuration", "log", "finish"])
def test_a_tracker_that_fails_is_left_out_with_one_line(run, monkeypatch, moment):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")

    def fail(*arguments, **options):
        raise OSError("the disk\nis gone")

    monkeypatch.setattr(tracking.TensorBoard, moment, fail)
    said = []
    train(run, "tensorboard", [10, 20, 30], loss=2.0, say=said.append)
    warnings = [line for line in said if line.startswith("warning")]
    assert warnings == [
        f"warning: tensorboard fails (the disk is gone); training continues without it, the records are in {run}"
    ]
    assert [record["step"] for record in read_records(run, "metrics") if "loss" in record] == [10, 20, 30]


def test_one_tracker_that_fails_leaves_the_others_alone(run, monkeypatch):
    for name in ("tensorboard", "trackio"):
        pytest.importorskip(name, reason=f"{name} is not installed")
    (run / "tensorboard").write_text("a file where the folder should be")
    said = []
    train(run, ["tensorboard", "trackio"], [10, 20], loss=2.0, say=said.append)
    assert sum("warning: tensorboard fails" in line for line in said) == 1
    assert shown("trackio", run) == recorded(run)


def test_a_damaged_memory_of_the_trackers_stops_nothing(run):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    (run / "trackers.json").write_text("{")
    train(run, "tensorboard", [10, 20], loss=2.0)
    assert shown("tensorboard", run) == recorded(run)


def test_an_exception_of_the_run_is_not_hidden(run):
    with pytest.raises(Interruption), Trackers(LoggingConfig("none"), run).mirroring(CONFIG):
        raise Interruption


def test_only_the_main_process_mirrors(run, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr(TensorBoardTracker, "start", lambda self: pytest.fail("another process mirrors"))
    monkeypatch.setattr(tracking, "_is_installed", lambda name: True)
    with Trackers(LoggingConfig("tensorboard"), run).mirroring(CONFIG):
        pass
    assert list(run.iterdir()) == []


def test_no_tracker_leaves_no_file(run):
    train(run, "none", [10], loss=2.0)
    assert [path.name for path in run.iterdir()] == ["metrics.jsonl"]


# --- where it is written ---------------------------------------------------------------------------------------------


def test_everything_stays_beside_the_run_unless_the_environment_says_otherwise(run, monkeypatch):
    monkeypatch.delenv("TRACKIO_DIR")
    arguments = (run, LoggingConfig(), None, 0)
    assert tracking.Wandb(*arguments).init_kwargs["dir"] == str(run)
    tracking.Trackio(*arguments)
    assert os.environ["TRACKIO_DIR"] == str(run.parent / ".trackio")

    monkeypatch.setenv("WANDB_DIR", "elsewhere")
    monkeypatch.setenv("TRACKIO_DIR", "elsewhere")
    assert tracking.Wandb(*arguments).init_kwargs["dir"] == "elsewhere"
    tracking.Trackio(*arguments)
    assert os.environ["TRACKIO_DIR"] == "elsewhere"


def test_names_come_from_the_config_then_the_environment_then_the_folder(run, monkeypatch):
    def named(project, name):
        tracker = tracking.Wandb(run, LoggingConfig(project=project, run_name=name), None, 0)
        return tracker.run_name, tracker.init_kwargs["name"]

    assert named(None, None) == ("smallm_hf", run.name)
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    monkeypatch.setenv("WANDB_NAME", "their run")
    assert named(None, None) == ("theirs", "their run")
    assert named("mine", "my run") == ("mine", "my run")


# --- the section of the config ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("word", "trackers"),
    [
        ("none", []),
        ("null", []),
        ("wandb", ["wandb"]),
        ("tensorboard,wandb", ["tensorboard", "wandb"]),
        ("[trackio, tensorboard, trackio]", ["trackio", "tensorboard"]),
        ("[none]", []),
        ("[]", []),
    ],
)
def test_report_to_takes_what_users_of_transformers_write(word, trackers):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(LoggingConfig, "logging")
    values = parser.parse_args(["--logging.report_to", word])
    assert LoggingConfig(**vars(values.logging)).trackers == trackers


@pytest.mark.parametrize(("given", "near"), [("tensorbord", "tensorboard"), ("WandB", "wandb"), ("trackoi", "trackio")])
def test_an_unknown_tracker_is_refused_with_the_nearest(given, near):
    with pytest.raises(UserError, match=f"^logging.report_to={given} is not a tracker; did you mean {near}\\?$"):
        LoggingConfig(["tensorboard", given])


def test_an_unknown_tracker_like_no_other_is_refused_with_all():
    with pytest.raises(
        UserError, match="report_to=all is not a tracker; set it to tensorboard, trackio, wandb or none"
    ):
        LoggingConfig("all")


def test_a_missing_package_is_reported_before_any_work(run, monkeypatch):
    monkeypatch.setattr(tracking, "_is_installed", lambda name: name == "wandb")
    with pytest.raises(UserError, match="report_to=trackio needs a package .* pip install trackio tensorboard$"):
        Trackers(LoggingConfig(["trackio", "wandb", "tensorboard"]), run)


def test_a_folder_named_like_a_package_is_not_the_package(tmp_path, monkeypatch):
    (tmp_path / "no_such_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not tracking._is_installed("no_such_tracker")
    assert tracking._is_installed("accelerate")


@pytest.mark.parametrize("answer", ["no", "refused"])
def test_wandb_without_an_account_is_refused_before_any_work(run, monkeypatch, answer):
    wandb = pytest.importorskip("wandb", reason="wandb is not installed")

    def login(**options):
        if answer == "refused":
            raise wandb.Error("API key must have 40+ characters")
        return False

    online = type("Setup", (), {"settings": type("Settings", (), {"mode": "online"})})
    monkeypatch.setattr(wandb, "setup", lambda: online)
    monkeypatch.setattr(wandb, "login", login)
    reason = "it knows no account" if answer == "no" else "API key must have"
    with pytest.raises(UserError, match=f"^logging.report_to=wandb: {reason}.*; run wandb login or set WANDB_MODE"):
        Trackers(LoggingConfig("wandb"), run)


# --- names and values ------------------------------------------------------------------------------------------------


def test_metrics_stand_in_panels():
    record = {
        **{"step": 3, "tokens": 96, "epoch": 0.5, "seconds": 1.5, "loss": 2.0, "learning_rate": 0.1},
        **{"gradient_norm": 0.7, "tokens_per_second": 64.0, "mfu": 0.3, "memory_bytes": 1024},
    }
    assert metric_panels(record) == {
        **{"progress/tokens": 96, "progress/epoch": 0.5, "progress/seconds": 1.5},
        **{"train/loss": 2.0, "train/learning_rate": 0.1, "train/gradient_norm": 0.7},
        **{"speed/tokens_per_second": 64.0, "speed/mfu": 0.3, "speed/memory_bytes": 1024},
    }
    validation = {"tokens": 96, "step": 3, "validation_bits_per_byte": 1.1, "validation_top1_accuracy": 0.4}
    assert metric_panels(validation) == {"validation/bits_per_byte": 1.1, "validation/top1_accuracy": 0.4}


def test_only_finite_numbers_are_shown():
    record = {"step": 1, "loss": 2.0, "learning_rate": 0.1, "gradient_norm": float("inf"), "mfu": None}
    assert metric_panels(record) == {"train/loss": 2.0, "train/learning_rate": 0.1}


def test_samples_stand_in_a_panel_of_their_prompt():
    assert sample_panel("In the beginning") == "samples/In_the_beginning"
    assert sample_panel(" \n") == "samples/no_prompt"
    assert sample_panel("Zoë / " + "x" * 100) == "samples/Zoë_" + "x" * 36


def test_a_config_is_flat_and_without_secrets():
    config = {
        "model": {"hidden_size": 8, "rope": {"theta": 1e4}},
        "hub": {"token": "hf_x", "write_token": "y", "api_key": "z", "repo": "me/it", "password": "p"},
        "training": {"sample_tokens": 5, "epochs": None, "compile": True, "prompts": ["a"]},
    }
    assert flat(config) == {
        "model/hidden_size": 8,
        "model/rope/theta": 1e4,
        "hub/repo": "me/it",
        "training/sample_tokens": 5,
        "training/epochs": None,
        "training/compile": True,
        "training/prompts": '["a"]',
    }
