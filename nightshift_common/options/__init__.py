"""Options that a pipeline file, a trigger form and a job share: name, type, bounds, default and meaning, once each.

A job's arguments and a section of the pipeline file inherit the same class; `nightshift.forms` makes a form's fields of
it. So a bound that is changed here is changed everywhere.
"""
