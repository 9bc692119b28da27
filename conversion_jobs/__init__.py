"""From weights to a served model: export, verify, package, publish, deploy. Each module is one job."""
