"""Curves read from Lightning's sparse CSV, and the picture made of them."""

import csv
import os
import sys

import numpy as np
import pytest
from PIL import Image

from futurel1.curves import _draw, _find_metrics, _read_families, curves, running_mean
from futurel1.errors import ConfigError, MissingFileError

COLUMNS = ["epoch", "step", "train/loss", "train/ce", "val/loss", "val/retrieval"]


def write_metrics(folder, rows, columns=COLUMNS):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "metrics.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
    return path


def sparse_rows(count=100):
    rows = []
    for step in range(count):
        rows.append({"epoch": 0, "step": step, "train/loss": 3 * 0.95**step, "train/ce": 2 * 0.95**step})
        if step % 20 == 19:
            rows.append({"epoch": 0, "step": step, "val/loss": 4 * 0.95**step, "val/retrieval": step / count})
    return rows


@pytest.fixture
def run(tmp_path):
    write_metrics(tmp_path / "my_run" / "version_0", sparse_rows())
    return tmp_path / "my_run"


@pytest.fixture
def figure_of(monkeypatch):
    """Draw, and hand back the figure instead of only its file."""
    from matplotlib.figure import Figure

    def draw(run):
        seen = []
        save = Figure.savefig

        def keep_and_save(figure, *args, **kwargs):
            seen.append(figure)
            save(figure, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(Figure, "savefig", keep_and_save)
            curves(run)
        return seen[0]

    return draw


def test_families_join_train_and_val_and_skip_empty_cells(run):
    families = _read_families(_find_metrics(run))
    assert {name: set(stages) for name, stages in families.items()} == {
        "loss": {"train", "val"},
        "ce": {"train"},
        "retrieval": {"val"},
    }
    assert families["loss"]["val"].steps == [19, 39, 59, 79, 99]
    assert families["loss"]["val"].values == pytest.approx([4 * 0.95**step for step in (19, 39, 59, 79, 99)])


def test_step_curves_are_preferred_to_their_epoch_means(tmp_path):
    rows = [
        {"step": 0, "train/loss_step": 3.0},
        {"step": 1, "train/loss_step": 2.0},
        {"step": 1, "train/loss_epoch": 2.5},
    ]
    path = write_metrics(tmp_path, rows, ["step", "train/loss_step", "train/loss_epoch"])
    families = _read_families(path)
    assert list(families) == ["loss"]
    assert families["loss"]["train"].values == [3.0, 2.0]


def test_picture_has_a_panel_per_family_with_named_axes_and_the_runs_name(run, figure_of):
    figure = figure_of(run)
    shown = [panel for panel in figure.axes if panel.get_visible()]
    assert [panel.get_title(loc="left") for panel in shown] == ["loss", "ce", "retrieval"]
    assert [panel.get_ylabel() for panel in shown] == [
        "total loss",
        "cross entropy (nats per token)",
        "retrieval (share right)",
    ]
    assert all(panel.get_xlabel() == "optimizer step" for panel in shown)
    assert [panel.get_yscale() for panel in shown] == ["log", "log", "linear"]
    assert [text.get_text() for text in shown[0].get_legend().get_texts()] == ["train", "val"]
    assert figure.get_suptitle() == "my_run"
    drawn = Image.open(run / "curves.png").convert("RGB")
    assert min(drawn.size) > 300
    assert len(np.unique(np.asarray(drawn).reshape(-1, 3), axis=0)) > 50  # more than a blank page


@pytest.mark.parametrize("values", [[1.0, 1.2, 1.1], [10.0, -1.0, 0.1], [5.0, 0.0, 1.0]])
def test_narrow_or_non_positive_losses_keep_a_linear_axis(tmp_path, figure_of, values):
    write_metrics(tmp_path, [{"step": step, "train/loss": value} for step, value in enumerate(values)])
    assert figure_of(tmp_path).axes[0].get_yscale() == "linear"


def test_values_that_are_not_finite_are_left_out_and_counted(tmp_path, figure_of):
    values = ["1.0", "nan", "0.5", "inf"]
    write_metrics(tmp_path, [{"step": step, "train/loss": value} for step, value in enumerate(values)])
    panel = figure_of(tmp_path).axes[0]
    assert panel.lines[0].get_ydata().tolist() == [1.0, 0.5]
    assert [text.get_text() for text in panel.texts] == ["2 not finite, left out"]


def test_a_run_of_nothing_but_nan_still_draws(tmp_path):
    write_metrics(tmp_path, [{"step": 0, "train/loss": "nan"}])
    assert curves(tmp_path).picture.stat().st_size > 0


def test_running_mean_keeps_constants_and_averages_the_middle():
    assert running_mean(np.full(100, 2.5)) == pytest.approx(np.full(100, 2.5))
    ramp = np.arange(200.0)
    assert running_mean(ramp)[50:150] == pytest.approx(ramp[50:150])
    noise = np.random.default_rng(0).normal(size=2000)
    assert running_mean(noise).std() < noise.std() / 5


def test_newest_file_wins_and_out_is_honoured(run, tmp_path):
    newer = write_metrics(run / "version_1", sparse_rows(30))
    os.utime(run / "version_0" / "metrics.csv", (1, 1))
    assert _find_metrics(run) == newer
    made = curves(str(run), str(tmp_path / "new" / "picture.png"))
    assert made.values["train/loss"] == pytest.approx((3, 3 * 0.95**29, 1))
    printed = str(made).splitlines()
    assert printed[-1] == str(tmp_path / "new" / "picture.png")
    assert printed[0].split() == ["metric", "first", "last", "each", "is"]
    assert any(line.startswith("train/loss ") for line in printed)
    assert (tmp_path / "new" / "picture.png").exists()
    assert not (run / "curves.png").exists()


def test_ends_of_a_long_curve_are_means(run):
    made = curves(run)
    assert made.values["train/loss"] == pytest.approx(
        (np.mean(3 * 0.95 ** np.arange(5)), np.mean(3 * 0.95 ** np.arange(95, 100)), 5)
    )
    assert made.values["val/loss"].points == 1
    assert next(line for line in str(made).splitlines() if line.startswith("train/loss ")).endswith("mean of 5 batches")


def test_errors_say_what_is_missing(tmp_path):
    with pytest.raises(MissingFileError, match="no such folder"):
        curves(tmp_path / "nowhere")
    with pytest.raises(MissingFileError, match=r"no metrics\.csv .* CSVLogger"):
        curves(tmp_path)
    path = write_metrics(tmp_path, [])
    with pytest.raises(ConfigError, match="no rows yet"):
        curves(tmp_path)
    path.write_text("")
    with pytest.raises(ConfigError, match="no rows yet"):
        curves(tmp_path)
    path.write_text("epoch,train/loss\n0,1.0\n")
    with pytest.raises(ConfigError, match="no `step` column"):
        curves(tmp_path)
    path.write_text("step,train/loss\n0,\n")
    with pytest.raises(ConfigError, match="no metric has a value"):
        curves(tmp_path)
    path.write_text("step,train/loss\n0,1.0\n1,oops\n")
    with pytest.raises(ConfigError, match=r"line 3, column train/loss: 'oops'"):
        curves(tmp_path)


def test_missing_matplotlib_names_the_extra(run, monkeypatch):
    for module in ("matplotlib", "matplotlib.backends.backend_agg", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'futurel1\[demo\]'"):
        curves(run)
    with pytest.raises(ConfigError, match="matplotlib"):
        _draw(_read_families(_find_metrics(run)), "title", run / "never.png")
    assert not (run / "never.png").exists()
