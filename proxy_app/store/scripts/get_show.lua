-- Read a show document and note its use.
-- KEYS[1] the document's hash   KEYS[2] zset: document -> last use, ms
-- Returns {digest, stored at, size, body}, with a false body where that is big; {} where there is none.
local found = redis.call('HMGET', KEYS[1], 'd', 't', 's', 'b')
if not found[1] then return {} end
local now = redis.call('TIME')
redis.call('ZADD', KEYS[2], 'XX', now[1] * 1000 + math.floor(now[2] / 1000), KEYS[1])
return found
