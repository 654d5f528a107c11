-- A newer version that was let in, while the deployments of the one before it still go over to it.
CREATE TABLE succession(adapter VARCHAR PRIMARY KEY, was VARCHAR NOT NULL, since BIGINT NOT NULL);
