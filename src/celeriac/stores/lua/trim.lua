-- Delete what has expired, and find records that do not say what stock workers have written.
--
-- ARGV[2]: the time before which a finished record has expired (microseconds), '' for none; ARGV[3]: how many records to
-- look at whether they have expired; ARGV[4]: about how many to compare; ARGV[5]: for how many seconds records are kept, ''
-- for ever. Gives how many were deleted, whether there is no more to look at, then the ids.

local answer = { 0, 0 }
local before = tonumber(ARGV[2])
local progress = call('HMGET', NUMBERS, 'trimmed', 'looked', 'lead')

-- Remember for as long again that it has expired; what somebody has deleted is forgotten.
local function remember(id, row, at)
  if at then
    call('SET', EXPIRED .. id, pack({ row[OWNER], at }), 'EX', ARGV[5])
  else
    call('DEL', EXPIRED .. id)
  end
end

local function trim(id)
  local row = load(id)
  local finished = row and tonumber(row[FINISHED])
  local gone = not row or (finished and call('EXISTS', META .. id) == 0)
  if gone or (finished and before and finished < before) then
    local at = row and expired_at(row, ARGV[5], ARGV[2])
    remove(id)
    remember(id, row, at)
    answer[1] = answer[1] + 1
  end
end

-- From the oldest on, each time a bit further: what has been there longest expires first.
local limit = tonumber(ARGV[3])
if limit > 0 then
  local trimmed = progress[1] or '-inf'
  local ids = call('ZRANGEBYSCORE', INDEX, '(' .. trimmed, '+inf', 'WITHSCORES', 'LIMIT', 0, limit)
  for index = 1, #ids, 2 do
    trim(ids[index])
    trimmed = ids[index + 1]
  end
  -- What was enqueued later cannot have ended earlier: begin again. Numbers may be ahead of the clock by the lead.
  if #ids < 2 * limit or (before and tonumber(trimmed) > before + (tonumber(progress[3]) or 0)) then
    trimmed = '-inf'
    answer[2] = 1
  end
  call('HSET', NUMBERS, 'trimmed', trimmed)
end

call('ZREMRANGEBYSCORE', CANCELLED, -call('TIME')[1], '(0')

local function compare(id)
  local head = call('GETRANGE', META .. id, 0, #OURS - 1)
  if head ~= '' and head ~= OURS then
    local row = load(id)
    if row and redis.sha1hex(call('GET', META .. id)) ~= row[STOCK] then
      answer[#answer + 1] = id
    end
  end
end

-- Those that have not ended, one state after the other; looked: the state and the cursor in its set.
local count = tonumber(ARGV[4])
if count > 0 then
  local NEXT = { PENDING = 'STARTED', STARTED = 'RETRY', RETRY = 'PENDING' }
  local state, cursor = string.match(progress[2] or 'PENDING 0', '(%u+) (%d+)')
  local found = call('SSCAN', INDEX .. ':state:' .. state, cursor, 'COUNT', count)
  for _, id in ipairs(found[2]) do
    compare(id)
  end
  call('HSET', NUMBERS, 'looked', (found[1] == '0' and NEXT[state] or state) .. ' ' .. found[1])
end
return answer
