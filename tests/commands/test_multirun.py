"""Several runs by one command (`-m`): each speaks and keeps its log, and a table ends them."""

from pathlib import Path

from running import TINY, run_forked

from raincast import schema


def test_every_job_speaks_and_a_table_ends_them(tiny_archive: Path, tmp_path: Path) -> None:
    overrides = [*TINY, f"data.archive={tiny_archive}", "data.eval_stride=20", "data.samples_per_epoch=8"]
    overrides += ["trainer.max_epochs=1"]
    ran = run_forked(tmp_path, "train", "-m", *overrides, "data.batch_size=0,4", drawn=False)
    (folder,) = (tmp_path / "outputs" / "sweep").glob("*/*")
    assert ran.returncode == 1, "one of them failed"
    assert "#1 : " in ran.stderr, "Hydra says which job begins"
    assert "epoch 1/1" in ran.stderr and "best checkpoint" in ran.stderr, "the second job speaks"
    assert "epoch 1/1" in (folder / "1" / "train.log").read_text()
    assert "data.batch_size=0" in (folder / "0" / "train.log").read_text()
    table = ran.stderr[ran.stderr.rindex("overrides") :]
    assert "val/csi_1mm" in table.splitlines()[0]
    first, second = (next(row for row in table.splitlines() if f"data.batch_size={n}" in row) for n in (0, 4))
    assert "failed: " in first and "failed" not in second
    assert "optimizer.lr" not in table, "what all jobs share is left out"
    assert "Traceback" not in ran.stderr and not (tmp_path / "multirun").exists()


def test_ingests_go_where_everything_goes(tmp_path: Path) -> None:
    schema.mock_archive(12, 20, 14).to_netcdf(tmp_path / "rain.nc")
    ran = run_forked(tmp_path, "ingest", "-m", "files=rain.nc", "archive=a,b")
    assert ran.returncode == 0, ran.stderr
    assert sorted(path.name for path in tmp_path.iterdir() if path.name[0] != ".") == [
        "a",
        "b",
        "outputs",
        "rain.nc",
    ]
    assert ran.stderr.count("done") == 2, "one line a job in the table"
