-- Delete what has expired, and look whether records still say what Celery's results say.
--
-- ARGV[2]: the epoch second before which a finished record has expired, '' for none; ARGV[3]: how many to delete at most;
-- ARGV[4]: how many to look at. Gives how many were deleted, then ids whose stock worker has written something new.

local removed = 0
if ARGV[2] ~= '' then
  for _, id in ipairs(call('ZRANGEBYSCORE', FINISHED, '-inf', '(' .. ARGV[2], 'LIMIT', 0, ARGV[3])) do
    if remove(id) then
      removed = removed + 1
    else
      call('ZREM', FINISHED, id)
    end
  end
end

local answer = { removed }

local function inspect(id)
  local found = call('HMGET', TASK .. id, 'state', 'stock')
  local head = call('GETRANGE', META .. id, 0, #OURS - 1)
  if not found[1] or (head == '' and READY[found[1]]) then
    remove(id)
  elseif head ~= '' and head ~= OURS and redis.sha1hex(call('GET', META .. id)) ~= found[2] then
    answer[#answer + 1] = id
  end
end

-- One round after the other over all records, each time a bit further.
local swept = call('HGET', NUMBERS, 'swept') or '0'
local ids = call('ZRANGEBYSCORE', INDEX, '(' .. swept, '+inf', 'WITHSCORES', 'LIMIT', 0, ARGV[4])
for index = 1, #ids, 2 do
  inspect(ids[index])
  swept = ids[index + 1]
end
if #ids < 2 * tonumber(ARGV[4]) then
  swept = '0'
end
call('HSET', NUMBERS, 'swept', swept)
return answer
