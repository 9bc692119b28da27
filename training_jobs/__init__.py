"""The jobs that make, train, score and judge models; each is a command line, `python -m training_jobs.<job> --help`."""
