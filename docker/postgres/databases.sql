-- The databases of Airflow, MLflow and Nightshift, and a role for each part, which can do that part's work and no more:
-- docs/security.md. psql runs this as the superuser at each start, on one machine and in the cluster. What is there is
-- kept; what an earlier release left to another owner goes to the role of its part.
\set ON_ERROR_STOP on
\getenv airflow AIRFLOW_DB_PASSWORD
\getenv mlflow MLFLOW_DB_PASSWORD
\getenv nightshift NIGHTSHIFT_DB_PASSWORD
\getenv model_storage MODEL_STORAGE_DB_PASSWORD
\getenv operations OPERATIONS_DB_PASSWORD
SET client_min_messages = warning;
SET log_min_error_statement = panic; -- the statements below hold passwords: the server's log shows none of them
SET log_min_duration_statement = -1;
SET log_statement = none;

SELECT format('CREATE ROLE %I', name)
FROM unnest('{airflow,mlflow,nightshift,model_storage,operations}'::text[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_roles WHERE rolname = name) \gexec
ALTER ROLE airflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'airflow';
ALTER ROLE mlflow LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'mlflow';
ALTER ROLE nightshift LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'nightshift';
ALTER ROLE model_storage LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'model_storage';
ALTER ROLE operations LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD :'operations';

SELECT format('CREATE DATABASE %I', name)
FROM unnest('{airflow,mlflow,nightshift}'::text[]) AS name
WHERE NOT EXISTS (SELECT FROM pg_database WHERE datname = name) \gexec
ALTER DATABASE airflow OWNER TO airflow;
ALTER DATABASE mlflow OWNER TO mlflow;
ALTER DATABASE nightshift OWNER TO CURRENT_USER; -- three parts share it: a schema each
REVOKE ALL ON DATABASE airflow, mlflow, nightshift, postgres, template1 FROM PUBLIC;
GRANT CONNECT ON DATABASE nightshift TO nightshift, model_storage, operations;

\connect airflow
SET client_min_messages = warning;
\set schema public
\set owner airflow
\ir owners.sql

\connect mlflow
SET client_min_messages = warning;
\set owner mlflow
\ir owners.sql

\connect nightshift
SET client_min_messages = warning;
CREATE SCHEMA IF NOT EXISTS nightshift; -- what jobs write
CREATE SCHEMA IF NOT EXISTS tuning; -- studies of hyperparameters, whose tables Optuna makes
CREATE SCHEMA IF NOT EXISTS model_storage; -- which version was in production when
CREATE SCHEMA IF NOT EXISTS operations; -- what the page Nightshift shows of failures
ALTER SCHEMA nightshift OWNER TO nightshift;
ALTER SCHEMA tuning OWNER TO nightshift;
ALTER SCHEMA model_storage OWNER TO model_storage;
ALTER SCHEMA operations OWNER TO operations;
SELECT 'ALTER TABLE nightshift.failures SET SCHEMA operations' -- where release 0.1.0 had it
WHERE to_regclass('nightshift.failures') IS NOT NULL AND to_regclass('operations.failures') IS NULL \gexec
\set schema nightshift
\set owner nightshift
\ir owners.sql
\set schema tuning
\ir owners.sql
\set schema model_storage
\set owner model_storage
\ir owners.sql
\set schema operations
\set owner operations
\ir owners.sql
-- Tables of labels that people keep in schemas of their own (docs/data.md): jobs may read them.
SELECT format('GRANT USAGE ON SCHEMA %1$I TO nightshift; GRANT SELECT ON ALL TABLES IN SCHEMA %1$I TO nightshift', nspname)
FROM pg_namespace
WHERE nspname NOT IN ('nightshift', 'tuning', 'model_storage', 'operations', 'information_schema') AND nspname NOT LIKE 'pg\_%' \gexec
