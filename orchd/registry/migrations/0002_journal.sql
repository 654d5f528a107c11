-- The adapters' rows are made again from the manifests, so they are dropped; what was decided about them is kept for the
-- journal, which is written from these tables when there is none yet. Tables of what the journal tells come first.
CREATE TABLE applied(one INTEGER PRIMARY KEY, seq BIGINT NOT NULL);
CREATE TABLE built(one INTEGER PRIMARY KEY, form VARCHAR NOT NULL);
CREATE TABLE verdict(adapter VARCHAR PRIMARY KEY, reasons VARCHAR[] NOT NULL, origin VARCHAR NOT NULL, received BIGINT NOT NULL);
CREATE TABLE pin(adapter VARCHAR PRIMARY KEY);
CREATE TABLE release(adapter VARCHAR PRIMARY KEY, since BIGINT NOT NULL);
CREATE TABLE trash(adapter VARCHAR PRIMARY KEY, since BIGINT NOT NULL);
CREATE TABLE rot(blob VARCHAR PRIMARY KEY, what VARCHAR NOT NULL, since BIGINT NOT NULL);
CREATE TABLE own_announcement(digest VARCHAR PRIMARY KEY, seq BIGINT NOT NULL, envelope BLOB NOT NULL);
CREATE TABLE setting(key VARCHAR PRIMARY KEY, value VARCHAR NOT NULL);
CREATE TABLE trust(
    subject VARCHAR PRIMARY KEY, kind VARCHAR NOT NULL, verdict VARCHAR NOT NULL, note VARCHAR NOT NULL,
    auto_update BOOLEAN NOT NULL, since BIGINT NOT NULL);
CREATE TABLE received(
    digest VARCHAR PRIMARY KEY, kind VARCHAR NOT NULL, adapter VARCHAR NOT NULL, author VARCHAR NOT NULL,
    envelope BLOB NOT NULL, since BIGINT NOT NULL);
ALTER TABLE deployment ADD COLUMN was VARCHAR DEFAULT '';
ALTER TABLE deployment ADD COLUMN reason VARCHAR DEFAULT '';
CREATE TABLE base_here(
    name VARCHAR PRIMARY KEY, path VARCHAR NOT NULL, since BIGINT NOT NULL, fingerprint VARCHAR NOT NULL);
CREATE TABLE base_link(fingerprint VARCHAR PRIMARY KEY, same_as VARCHAR NOT NULL, since BIGINT NOT NULL);
CREATE TABLE bound(key VARCHAR PRIMARY KEY, count BIGINT NOT NULL, mean_log DOUBLE NOT NULL, m2_log DOUBLE NOT NULL);
INSERT INTO verdict
    SELECT digest, CASE WHEN reason = '' THEN [] ELSE string_split(reason, '; ') END, origin, received FROM adapter;
DROP TABLE adapter;
CREATE TABLE adapter(
    digest VARCHAR PRIMARY KEY, name VARCHAR NOT NULL, author VARCHAR NOT NULL, base VARCHAR NOT NULL,
    architecture VARCHAR NOT NULL, adapter_rank USMALLINT NOT NULL, modules VARCHAR[] NOT NULL, licence VARCHAR NOT NULL,
    tags VARCHAR[] NOT NULL, size BIGINT NOT NULL, created BIGINT NOT NULL, supersedes VARCHAR,
    words VARCHAR NOT NULL USING COMPRESSION uncompressed,
    trigrams0 UBIGINT NOT NULL, trigrams1 UBIGINT NOT NULL, trigrams2 UBIGINT NOT NULL, trigrams3 UBIGINT NOT NULL,
    trigrams4 UBIGINT NOT NULL, trigrams5 UBIGINT NOT NULL, trigrams6 UBIGINT NOT NULL, trigrams7 UBIGINT NOT NULL,
    loss DOUBLE, exact_match DOUBLE, capabilities VARCHAR[] NOT NULL,
    blobs VARCHAR[] NOT NULL, shown VARCHAR NOT NULL, origin VARCHAR NOT NULL, received BIGINT NOT NULL,
    state VARCHAR NOT NULL, reason VARCHAR NOT NULL, pinned BOOLEAN NOT NULL, used BIGINT NOT NULL,
    topics VARCHAR NOT NULL);
CREATE TABLE edge(
    child VARCHAR NOT NULL, parent VARCHAR NOT NULL, kind VARCHAR NOT NULL, weight DOUBLE,
    PRIMARY KEY(child, parent, kind));
CREATE TABLE news(
    digest VARCHAR PRIMARY KEY, kind VARCHAR NOT NULL, adapter VARCHAR NOT NULL, author VARCHAR NOT NULL,
    topics VARCHAR[] NOT NULL, received BIGINT NOT NULL, envelope BLOB NOT NULL);
INSERT INTO news SELECT digest, 'announcement', adapter, author, topics, received, envelope FROM announcement;
