-- Included by databases.sql: gives what lies in the schema :schema to the role :owner. What belongs to something else
-- (a table's sequences and row type, what an extension made) follows that.
SELECT format('ALTER TABLE %s OWNER TO %I', oid::regclass, :'owner')
FROM pg_class
WHERE relnamespace = :'schema'::regnamespace AND relowner <> :'owner'::regrole AND relkind IN ('r', 'p', 'v', 'm', 'f', 'S')
  AND NOT EXISTS (
    SELECT FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = pg_class.oid
      AND (deptype = 'e' OR relkind = 'S' AND deptype IN ('a', 'i'))
  ) \gexec
SELECT format('ALTER ROUTINE %s OWNER TO %I', oid::regprocedure, :'owner')
FROM pg_proc
WHERE pronamespace = :'schema'::regnamespace AND proowner <> :'owner'::regrole
  AND NOT EXISTS (
    SELECT FROM pg_depend WHERE classid = 'pg_proc'::regclass AND objid = pg_proc.oid AND deptype = 'e'
  ) \gexec
SELECT format('ALTER TYPE %s OWNER TO %I', oid::regtype, :'owner')
FROM pg_type
WHERE typnamespace = :'schema'::regnamespace AND typowner <> :'owner'::regrole
  AND (typtype IN ('e', 'd', 'r') OR typtype = 'c' AND (SELECT relkind FROM pg_class WHERE oid = typrelid) = 'c')
  AND NOT EXISTS (
    SELECT FROM pg_depend WHERE classid = 'pg_type'::regclass AND objid = pg_type.oid AND deptype = 'e'
  ) \gexec
