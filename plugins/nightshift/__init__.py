"""Airflow's side of Nightshift: what runs when and where. It imports Airflow, never a job's code or libraries."""
