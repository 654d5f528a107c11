-- What a deployment is put there again with, and what answered under its name before it, with its files.
ALTER TABLE deployment ADD COLUMN made VARCHAR DEFAULT '';
ALTER TABLE deployment ADD COLUMN before VARCHAR DEFAULT '';
ALTER TABLE deployment ADD COLUMN also VARCHAR[] DEFAULT [];
