#!/bin/bash
# Makes the databases of Airflow, MLflow and Nightshift, each with an owner that can do nothing else. Once, on an empty
# data volume.
set -euo pipefail
for name in airflow mlflow nightshift; do
  password="${name^^}_DB_PASSWORD"
  psql --username "${POSTGRES_USER:-postgres}" --dbname postgres --set ON_ERROR_STOP=1 --set password="${!password}" <<SQL
CREATE ROLE $name LOGIN PASSWORD :'password';
CREATE DATABASE $name OWNER $name;
REVOKE CONNECT ON DATABASE $name FROM PUBLIC;
SQL
done
