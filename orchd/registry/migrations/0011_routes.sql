-- What the user said of a routed request: the vector of the request, and who answers it from then on.
CREATE TABLE route_lesson (key VARCHAR PRIMARY KEY, base VARCHAR, adapter VARCHAR, vector BLOB, since BIGINT);
