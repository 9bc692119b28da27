"""From a pipeline file to a DAG that Airflow sees."""
