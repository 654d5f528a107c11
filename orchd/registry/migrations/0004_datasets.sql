-- Data sets that were deleted here and may be had back.
CREATE TABLE dataset_trash(dataset VARCHAR PRIMARY KEY, since BIGINT NOT NULL);
