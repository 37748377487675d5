"""What MLflow runs to make the model: code, not a pickle."""

from mlflow.models import set_model

from stackseg.serving.pyfunc import SegmentationModel

set_model(SegmentationModel())
