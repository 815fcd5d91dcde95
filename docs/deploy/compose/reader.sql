-- Once, after the first collector has made the tables:
--   docker compose exec -T database psql -U ferryman -v password="$READER_PASSWORD" < reader.sql
CREATE ROLE reader LOGIN PASSWORD :'password';
GRANT pg_read_all_data TO reader;
ALTER ROLE reader SET default_transaction_read_only = on;
ALTER ROLE reader SET statement_timeout = '30s';
