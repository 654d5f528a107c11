-- Under which topics a record came, so that it goes to nobody else after the index was made again.
ALTER TABLE received ADD COLUMN topics VARCHAR[] DEFAULT [];
