"""What conversions do with weights: functions for `jobkit.sandbox.runner`, which calls them where they can do no harm.

Nothing else of the conversion jobs loads a model. What a function leaves is data to the job: a graph, arrays, and
TorchScript that only another of these functions opens.
"""
