import pytest

from lq.report.history import read_history


def test_what_lightning_writes_is_read(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    logger = CSVLogger(tmp_path, name="run")
    logger.log_metrics({"epoch": 0, "loss": 1.5}, step=3)
    logger.log_metrics({"epoch": 0, "qat/fake/accuracy": 0.5}, step=4)
    logger.save()
    expected = [{"epoch": 0, "loss": 1.5, "step": 3}, {"epoch": 0, "qat/fake/accuracy": 0.5, "step": 4}]
    assert read_history(logger.log_dir) == expected
    assert read_history(logger.log_dir + "/metrics.csv") == expected


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"metrics.csv does not exist; give the log_dir"):
        read_history(tmp_path)
