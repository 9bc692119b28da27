"""What every job is made of: the contract with Airflow, the data bottle, snapshots, tracking.

Nothing here imports Airflow, and importing `jobkit` imports no torch, no mlflow and no boto3:
those load when a job first uses them.
"""
