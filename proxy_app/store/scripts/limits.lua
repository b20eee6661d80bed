-- End requests of a key that were let in, then let one more in, or say which limit refuses it. All or nothing.
-- KEYS[1] requests: theoretical arrival time, µs   KEYS[2] tokens a minute: the same
-- KEYS[3] zset under way: "request tokens" -> expiry, ms   KEYS[4] tokens of the day   KEYS[5] GPU ms of the day
-- ARGV[1] request, or "" where only some are ended   ARGV[2] time to live of what is under way, ms
-- ARGV[3] requests a minute   ARGV[4] burst   ARGV[5] under way   ARGV[6] tokens a minute   ARGV[7] tokens a day
-- ARGV[8] GPU ms a day   ARGV[9] tokens reserved   ("" where there is no such limit)
-- ARGV[10..] seven for each that has ended: request, tokens reserved, tokens used, GPU ms used, and the limits that it
-- was let in with: tokens a minute, is there one of tokens a day ("1" or ""), is there one of GPU time
-- Returns {refused, retry after ms, requests left, tokens left}; refused: "" or the limit's name; left: -1 without one.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local now_ms = math.floor(now / 1000)
local reserve = tonumber(ARGV[9])
local DAY = 172800

local function whole(number) return string.format('%.0f', number) end

local function tokens_of(member) return tonumber(string.match(member, ' (%d+)$')) end

local function reserved_now()
  local sum = 0
  for _, member in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do sum = sum + tokens_of(member) end
  return sum
end

-- What crashed workers had reserved comes back.
for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[3], '-inf', now_ms)) do
  local tokens = tokens_of(member)
  redis.call('ZREM', KEYS[3], member)
  -- It may have been yesterday's: never more than there is today.
  local back = math.min(tokens, tonumber(redis.call('GET', KEYS[4]) or '0'))
  if back > 0 then redis.call('DECRBY', KEYS[4], back) end
end

local function set_tat(key, tat)
  if tat > now then
    redis.call('SET', key, whole(tat), 'PX', math.ceil((tat - now) / 1000) + 1)
  else
    redis.call('DEL', key)
  end
end

local function count(key, number)
  redis.call('INCRBY', key, number)
  redis.call('EXPIRE', key, DAY)
end

-- What a request really used takes the place of what was reserved. One that is ended twice changes nothing.
local function settle(request, reserved, used, gpu_ms, per_minute, has_tokens, has_gpu)
  if redis.call('ZREM', KEYS[3], request .. ' ' .. reserved) == 0 then return end
  local metered = math.min(tonumber(reserved), tonumber(per_minute) or 0)
  if metered > 0 and tonumber(used) ~= metered then
    local tat = math.max(tonumber(redis.call('GET', KEYS[2]) or '0'), now)
    set_tat(KEYS[2], tat + (used - metered) * 60000000 / per_minute)
  end
  if has_tokens ~= '' and used ~= reserved then count(KEYS[4], used - reserved) end
  if has_gpu ~= '' and tonumber(gpu_ms) > 0 then count(KEYS[5], gpu_ms) end
end

for i = 10, #ARGV, 7 do settle(unpack(ARGV, i, i + 6)) end
if ARGV[1] == '' then return {'', 0, -1, -1} end

local function meter(key, limit, burst, cost)
  local interval = 60000000 / limit
  local tat = math.max(tonumber(redis.call('GET', key) or '0'), now)
  local after = tat + interval * cost
  local allowed_at = after - interval * (limit + burst)
  return after, allowed_at, math.floor((interval * (limit + burst) - (after - now)) / interval)
end

local requests_after, tokens_after
local requests_left, tokens_left = -1, -1
if ARGV[3] ~= '' then
  local limit = tonumber(ARGV[3])
  if limit == 0 then return {'rpm', 60000, 0, -1} end
  local allowed_at
  requests_after, allowed_at, requests_left = meter(KEYS[1], limit, tonumber(ARGV[4]), 1)
  if now + 1 < allowed_at then return {'rpm', math.ceil((allowed_at - now) / 1000), 0, -1} end
end
if ARGV[5] ~= '' and redis.call('ZCARD', KEYS[3]) >= tonumber(ARGV[5]) then
  return {'concurrent', 1000, requests_left, -1}
end
if ARGV[6] ~= '' then
  local limit = tonumber(ARGV[6])
  if limit == 0 then return {'tpm', 60000, requests_left, 0} end
  local allowed_at
  tokens_after, allowed_at, tokens_left = meter(KEYS[2], limit, 0, math.min(reserve, limit))
  if now + 1 < allowed_at then return {'tpm', math.ceil((allowed_at - now) / 1000), requests_left, 0} end
end
local to_midnight = (86400 - time[1] % 86400) * 1000
if ARGV[7] ~= '' then
  local used = tonumber(redis.call('GET', KEYS[4]) or '0')
  if used >= tonumber(ARGV[7]) then
    -- Where it is only reserved, it may soon be there again.
    local is_spent = used - reserved_now() >= tonumber(ARGV[7])
    return {'tpd', is_spent and to_midnight or 1000, requests_left, 0}
  end
  local left = tonumber(ARGV[7]) - used - reserve
  if tokens_left < 0 or left < tokens_left then tokens_left = math.max(0, left) end
end
if ARGV[8] ~= '' and tonumber(redis.call('GET', KEYS[5]) or '0') >= tonumber(ARGV[8]) then
  return {'gpu', to_midnight, requests_left, tokens_left}
end

if requests_after then set_tat(KEYS[1], requests_after) end
if tokens_after then set_tat(KEYS[2], tokens_after) end
if ARGV[7] ~= '' then count(KEYS[4], reserve) end
redis.call('ZADD', KEYS[3], now_ms + ARGV[2], ARGV[1] .. ' ' .. ARGV[9])
redis.call('PEXPIRE', KEYS[3], ARGV[2] * 2)
return {'', 0, requests_left, tokens_left}
