-- Keep a flight's token, if it is still ours.
-- KEYS[1] the token's key   ARGV[1] our token   ARGV[2] time to live, ms
-- Returns 1 where it was ours.
if redis.call('GET', KEYS[1]) == ARGV[1] then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
return 0
