-- Which of two deployed files the user preferred, asked blindly. `pair` is both SHA-256, the smaller first.
CREATE TABLE preference(
    pair VARCHAR PRIMARY KEY, first BIGINT NOT NULL, second BIGINT NOT NULL, neither BIGINT NOT NULL,
    since BIGINT NOT NULL);
