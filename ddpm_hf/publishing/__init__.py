"""From a run folder to the folder that the Hub shows, and there."""
