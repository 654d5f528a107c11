-- An index of what is on disk and of what was decided here. Primary keys only, no foreign keys, no secondary indexes,
-- no TIMESTAMPTZ (times are milliseconds since 1970): each of these loses data or needs more packages in DuckDB.
CREATE TABLE adapter(
    digest VARCHAR PRIMARY KEY, envelope BLOB NOT NULL, name VARCHAR NOT NULL, author VARCHAR NOT NULL,
    base VARCHAR NOT NULL, adapter_rank USMALLINT NOT NULL, modules VARCHAR[] NOT NULL, size BIGINT NOT NULL,
    created BIGINT NOT NULL, received BIGINT NOT NULL, state VARCHAR NOT NULL, reason VARCHAR NOT NULL, origin VARCHAR NOT NULL);
CREATE TABLE announcement(
    digest VARCHAR PRIMARY KEY, adapter VARCHAR NOT NULL, topics VARCHAR[] NOT NULL, author VARCHAR NOT NULL,
    seq BIGINT NOT NULL, size BIGINT NOT NULL, base VARCHAR NOT NULL, peer VARCHAR NOT NULL, created BIGINT NOT NULL,
    received BIGINT NOT NULL, envelope BLOB NOT NULL);
CREATE TABLE run(adapter VARCHAR PRIMARY KEY, dataset VARCHAR NOT NULL, job VARCHAR NOT NULL, salt BLOB NOT NULL);
CREATE TABLE dataset(
    id VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, kind VARCHAR NOT NULL, train BIGINT NOT NULL, validation BIGINT NOT NULL,
    test BIGINT NOT NULL, skipped BIGINT NOT NULL, warnings VARCHAR[] NOT NULL, created BIGINT NOT NULL);
CREATE TABLE topic(name VARCHAR PRIMARY KEY, joined BIGINT NOT NULL);
CREATE TABLE job(
    id VARCHAR PRIMARY KEY, kind VARCHAR NOT NULL, state VARCHAR NOT NULL, title VARCHAR NOT NULL, spec VARCHAR NOT NULL,
    result VARCHAR, error VARCHAR, created BIGINT NOT NULL, started BIGINT, finished BIGINT);
CREATE TABLE deployment(
    name VARCHAR PRIMARY KEY, adapter VARCHAR, target VARCHAR NOT NULL, state VARCHAR NOT NULL, base VARCHAR NOT NULL,
    blob VARCHAR NOT NULL, size BIGINT NOT NULL, quantize VARCHAR NOT NULL, parity VARCHAR, created BIGINT NOT NULL);
