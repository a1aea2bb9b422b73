"""The demo: a page where anyone can draw with a model."""

import os

# before Gradio and the Hub's client are imported: nothing is reported to anyone
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
