"""What a training can report to: names and packages, of which nothing is imported."""

from importlib.util import find_spec

from hfcompress.errors import OptionError

REPORTERS = {  # of the Trainer's callbacks (transformers.integrations), and the packages of which it wants one
    "azure_ml": ("azureml",),
    "clearml": ("clearml",),
    "codecarbon": ("codecarbon",),
    "comet_ml": ("comet_ml",),
    "dagshub": ("dagshub",),
    "dvclive": ("dvclive",),
    "flyte": ("flytekit",),
    "mlflow": ("mlflow",),
    "neptune": ("neptune",),
    "swanlab": ("swanlab",),
    "tensorboard": ("tensorboard", "tensorboardX"),
    "trackio": ("trackio",),
    "wandb": ("wandb",),
}


def require_reporter(name: str) -> None:
    """Refuse what the Trainer does not report to, and what is not installed; nothing of it is imported.

    Raises:
        UserError: naming those that there are, or the package.
    """
    if name in ("none", "all"):
        return
    if name not in REPORTERS:
        raise OptionError("report_to", "choose from none, all, {known}", name, known=", ".join(REPORTERS))
    if not any(find_spec(package) for package in REPORTERS[name]):
        reason = "pip install {package}, or leave the option out"
        raise OptionError("report_to", reason, name, package=REPORTERS[name][0])
