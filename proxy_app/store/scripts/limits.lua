-- End requests of a key that were let in, then let one more in, or say which limit refuses it. All or nothing.
-- KEYS[1] hash: requests, tokens (theoretical arrival times, µs), rpm, tpm (the limits by which they were made), day
-- (since 1970), used (tokens of that day), gpu (ms), looked (when crashed workers' requests were looked for, ms)
-- KEYS[2] zset under way: member -> expiry, ms; a member is "request tokens day tokens-a-minute": what it was let in for
-- ARGV[1] member, or "" where only some are ended   ARGV[2] time to live of what is under way, ms   ARGV[3] day
-- ARGV[4] tokens reserved   ARGV[5] requests a minute   ARGV[6] burst   ARGV[7] under way   ARGV[8] tokens a minute
-- ARGV[9] tokens a day   ARGV[10] GPU ms a day   ("" where there is no such limit)
-- ARGV[11..] three for each that has ended: member, tokens used, GPU ms used
-- Returns {refused, retry after ms, requests left, tokens left}; refused: "" or the limit's name; left: -1 without one.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local now_ms = math.floor(now / 1000)
-- Each call of Redis costs 2 to 5 µs, and every request runs this: what need not be done each time is not.
local MINUTE, LOOK_MS, TWO_DAYS_MS, GUESSED_GPU_MS = 60000000, 1000, 172800000, 1000

local stored = redis.call('HMGET', KEYS[1], 'requests', 'tokens', 'day', 'used', 'gpu', 'looked', 'rpm', 'tpm')
local requests = math.max(tonumber(stored[1] or '0'), now)
local tokens = math.max(tonumber(stored[2] or '0'), now)
local day, used, gpu = tonumber(stored[3] or '0'), tonumber(stored[4] or '0'), tonumber(stored[5] or '0')
-- Days only begin: where two machines' clocks differ, none is begun twice.
local is_new_day = tonumber(ARGV[3]) > day
if is_new_day then day, used, gpu = tonumber(ARGV[3]), 0, 0 end
local looked = tonumber(stored[6] or '0')
local rpm, tpm = tonumber(stored[7] or '0'), tonumber(stored[8] or '0')

local function parts(member)
  local reserved, of_day, per_minute = string.match(member, ' (%d+) (%d+) (%d+)$')
  return tonumber(reserved), tonumber(of_day) == day, tonumber(per_minute)
end

local changed = false

-- What crashed workers had reserved comes back.
if now_ms - looked >= LOOK_MS then
  looked = now_ms
  for _, member in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now_ms)) do
    local reserved, is_today = parts(member)
    redis.call('ZREM', KEYS[2], member)
    changed = true
    if is_today then used = math.max(0, used - reserved) end
  end
end

-- What a request really used takes the place of what was reserved. One that is ended twice changes nothing.
for i = 11, #ARGV, 3 do
  if redis.call('ZREM', KEYS[2], ARGV[i]) == 1 then
    local reserved, is_today, per_minute = parts(ARGV[i])
    changed = true
    used = math.max(0, used + ARGV[i + 1] - (is_today and reserved or 0))
    gpu = gpu + ARGV[i + 2]
    if per_minute > 0 then
      local metered = math.min(reserved, per_minute)
      tokens = math.max(now, tokens + (ARGV[i + 1] - metered) * MINUTE / (tpm > 0 and tpm or per_minute))
    end
  end
end

local function whole(number) return string.format('%.0f', number) end

local function save()
  redis.call('HSET', KEYS[1], 'requests', whole(requests), 'tokens', whole(tokens), 'day', day, 'used', whole(used),
    'gpu', whole(gpu), 'looked', looked, 'rpm', rpm, 'tpm', tpm)
  if is_new_day then redis.call('PEXPIRE', KEYS[1], TWO_DAYS_MS) end
end

local function reserved_now()
  local sum = 0
  for _, member in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
    local reserved, is_today = parts(member)
    if is_today then sum = sum + reserved end
  end
  return sum
end

-- Where the limit was raised, what was used costs less time from now on. One that was lowered takes nothing back.
local function at_rate(tat, old, new)
  return old > 0 and old < new and now + (tat - now) * old / new or tat
end

local function meter(tat, limit, burst, cost)
  local interval = MINUTE / limit
  local after = tat + interval * cost
  -- One µs is what rounding makes.
  local wait_ms = math.ceil((after - interval * (limit + burst) - now - 1) / 1000)
  return after, wait_ms, math.floor((interval * (limit + burst) - (after - now)) / interval)
end

local requests_left, tokens_left = -1, -1

local function refused(by, wait_ms)
  if changed then save() end
  return {by, wait_ms, requests_left, tokens_left}
end

if ARGV[1] == '' then return refused('', 0) end
local reserve = tonumber(ARGV[4])
local requests_after, tokens_after, wait_ms = requests, tokens, 0
if ARGV[5] ~= '' then
  local limit = tonumber(ARGV[5])
  if limit > 0 then
    requests, rpm = at_rate(requests, rpm, limit), limit
    requests_after, wait_ms, requests_left = meter(requests, limit, tonumber(ARGV[6]), 1)
  end
  if limit == 0 or wait_ms > 0 then
    requests_left = 0
    return refused('rpm', limit == 0 and 60000 or wait_ms)
  end
end
if ARGV[7] ~= '' and redis.call('ZCARD', KEYS[2]) >= tonumber(ARGV[7]) then return refused('concurrent', 1000) end
if ARGV[8] ~= '' then
  local limit = tonumber(ARGV[8])
  if limit > 0 then
    tokens, tpm = at_rate(tokens, tpm, limit), limit
    tokens_after, wait_ms, tokens_left = meter(tokens, limit, 0, math.min(reserve, limit))
  end
  if limit == 0 or wait_ms > 0 then
    tokens_left = 0
    return refused('tpm', limit == 0 and 60000 or wait_ms)
  end
end
local to_midnight = (86400 - time[1] % 86400) * 1000
if ARGV[9] ~= '' then
  local limit = tonumber(ARGV[9])
  if used >= limit then
    tokens_left = 0
    -- Where it is only reserved, it may soon be there again.
    return refused('tpd', used - reserved_now() >= limit and to_midnight or 1000)
  end
  local left = math.max(0, limit - used - reserve)
  if tokens_left < 0 or left < tokens_left then tokens_left = left end
end
if ARGV[10] ~= '' then
  local limit = tonumber(ARGV[10])
  -- What runs has a cost too, which nobody knows yet.
  if gpu + redis.call('ZCARD', KEYS[2]) * GUESSED_GPU_MS >= limit then
    return refused('gpu', gpu >= limit and to_midnight or 1000)
  end
end

requests, tokens, used = requests_after, tokens_after, used + reserve
save()
redis.call('ZADD', KEYS[2], now_ms + ARGV[2], ARGV[1])
-- Not sooner: what was reserved has to come back.
redis.call('PEXPIRE', KEYS[2], TWO_DAYS_MS)
return {'', 0, requests_left, tokens_left}
