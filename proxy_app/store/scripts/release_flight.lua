-- Give a flight's token back, if it is still ours.
-- KEYS[1] the token's key   ARGV[1] our token
-- Returns 1 where it was ours.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
