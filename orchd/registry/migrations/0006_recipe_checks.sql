-- What came of recomputing averages of others from their leaves.
CREATE TABLE recipe_check(
    adapter VARCHAR PRIMARY KEY, holds BOOLEAN NOT NULL, relative_error DOUBLE NOT NULL, tolerance DOUBLE NOT NULL,
    since BIGINT NOT NULL);
