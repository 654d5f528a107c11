-- Federations that this node has joined.
CREATE TABLE federation(
    id VARCHAR PRIMARY KEY, envelope BLOB NOT NULL, dataset VARCHAR NOT NULL, agreed BIGINT NOT NULL,
    joined BIGINT NOT NULL, "left" BIGINT);
